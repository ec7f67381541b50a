import base64
import hashlib
import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aromni_jax.errors import UserError
from aromni_jax.evaluation import report, report_charts, report_figures, report_media, report_samples, report_scores

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import write_fake_run


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    return write_fake_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def full_page(full_run):
    return report.write_report(full_run).read_text()


@pytest.fixture
def minimal_run(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("world", "ablations", "held_out"),
    [
        ("numbers", True, "out of the fitting of the codecs."),
        ("things", False, "the things are known ones"),
        ("../worlds/numbers", False, "Every item here was kept out of training."),
    ],
)
def test_what_is_said_of_a_world_is_said_of_its_own_runs_only(minimal_run, world, ablations, held_out):
    held = {"asr": {"wer": 0.1, "items": 2, "bound": 0.2}}
    (minimal_run / "metrics.json").write_text(json.dumps({"recipe": {"world": world}, "held_out": held}))
    page = report.write_report(minimal_run).read_text()
    assert ("The same budget for every row" in page) == ablations and held_out in page


def with_samples(run, *records):
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / "samples.json").write_text(json.dumps(records))
    return run


class Tags(HTMLParser):
    """Every start tag with its attributes, and the texts inside style and script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.inside, self.texts = [], "", {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside in ("style", "script"):
            self.texts[self.inside] = self.texts.get(self.inside, "") + data

    def handle_endtag(self, tag):
        self.inside = ""


# -- the page -------------------------------------------------------------------------------------------


def test_full_run_shows_every_section(full_page):
    for heading in ("Held-out scores", "Samples", "Loss curves", "Speed and packing", "Data and model", "Ablations"):
        assert f"<h2>{heading}</h2>" in full_page
    for text in ("3 of 4", "missed: text to picture", "12 min 26 s", "97.3 %", "judge: moonshine-base", "seven nine"):
        assert text in full_page
    tags = Tags(full_page).tags
    assert sum(tag == "audio" for tag, _ in tags) == 8
    assert sum(values.get("class") == "crisp" for tag, values in tags if tag == "img") == 7
    assert sum(values.get("class") == "tl" for _, values in tags) == 11


def test_unknown_leaves_are_listed(full_page):
    assert "surprise / deep / leaf" in full_page and "surprise / list" in full_page


def test_page_fetches_nothing(full_page):
    urls = [
        (tag, name, value)
        for tag, attributes in Tags(full_page).tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href")
    ]
    assert urls and all(value.startswith(("data:", "#")) for _, _, value in urls)
    assert not re.search(r"@import|url\(|https?://", Tags(full_page).texts["style"])
    assert "default-src 'none'" in full_page


def test_security_policy_names_the_very_style_and_script_of_the_page(full_page):
    for name, text in Tags(full_page).texts.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in html.unescape(full_page)
    assert not any("style" in attributes for _, attributes in Tags(full_page).tags)  # the policy would block it


def test_minimal_run(minimal_run):
    page = report.write_report(minimal_run).read_text()
    assert "No held-out scores were written" in page and "No samples were written" in page


def test_minimal_samples_and_one_log_line(minimal_run):
    (minimal_run / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss/text": 2.5, "loss": null}\n')
    with_samples(minimal_run, {"task": "tts"}, {"task": "new_task", "input": [{"kind": "text", "text": "hello"}]})
    page = report.write_report(minimal_run).read_text()
    assert "new task" in page and "hello" in page and "not judged" in page and 'class="chart"' in page


def test_markup_in_strings_is_escaped(full_run, tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1, f"loss/{evil}": 1.0}) + "\n")
    held_out = {evil: {"exact": 0.5, "note": evil, evil: {"wer": 0.1}}, "loss_falls": {evil: True, "text": evil}}
    metrics = {section: {evil: evil, "by_group": {evil: 1}, "counts": {evil: 2}} for section in ("data", "model", evil)}
    metrics |= {"created": evil, "environment": {evil: evil}, "recipe": {evil: evil}, "held_out": held_out}
    metrics |= {"timing": {evil: 3}, "reproduce": [evil], "throughput": [{evil: evil}], "samples": {"selection": evil}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    rows = [{"name": evil, "seeds": evil, "metrics": {evil: [1, 2]}}]
    (tmp_path / "ablations.json").write_text(json.dumps({"budget": {evil: evil}, "rows": rows}))
    segment = {"kind": "text", "text": evil, "label": evil}
    record = {"task": evil, "title": evil, "input": [segment], "output": [segment], "expected": evil, "judged": evil}
    record |= {"tokens": [7], "modalities": [0], "labels": [evil], "states": [0], "clocks": {evil: evil}}
    with_samples(tmp_path, record)
    page = report.write_report(tmp_path).read_text()
    tags = Tags(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert not any(attributes.get("src") == "x" for _, attributes in tags)


def test_media_are_embedded_unchanged(full_run, full_page):
    for name, media_type in (("t2i0.png", "image/png"), ("chat_out.wav", "audio/wav")):
        content = base64.b64encode((full_run / "samples" / name).read_bytes()).decode()
        assert f"data:{media_type};base64,{content}" in html.unescape(full_page)


def test_page_stays_under_the_cap_and_says_what_it_left_out(full_run, monkeypatch, tmp_path):
    size = (full_run / "report.html").stat().st_size
    monkeypatch.setattr(report, "MAX_BYTES", size - 100_000)
    page = report.write_report(full_run).read_text()
    assert len(page.encode()) <= size - 100_000
    assert re.search(r"\d more samples? lies? in the run", page)
    assert 'alt="picture"' in page
    monkeypatch.setattr(report, "MAX_BYTES", 10_000)
    with pytest.raises(UserError, match="MB without any media"):
        report.write_report(full_run)
    monkeypatch.undo()
    report.write_report(full_run)


def test_failed_write_keeps_the_old_page(full_run, monkeypatch):
    before = (full_run / "report.html").read_bytes()

    def full_disk(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UserError, match=r"report\.html.*No space left"):
        report.write_report(full_run)
    assert (full_run / "report.html").read_bytes() == before
    assert not list(full_run.glob(".*"))


# -- bad input ------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_run_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=re.escape(f"{folder} is no run folder: give the --run-dir of")):
            report.write_report(folder)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json, line 1: not JSON"),
        ("metrics.json", "[]", "metrics.json: expected one JSON object, found list"),
        ("metrics.json", '{"vocabulary": {"size": 3}}', "metrics.json, vocabulary: "),
        ("metrics.jsonl", '{"step"\n{"step": 1}\n', "metrics.jsonl, line 1: not JSON"),
        ("metrics.jsonl", "3\n", "metrics.jsonl, line 1: expected one JSON object"),
        ("ablations.json", "[]", "ablations.json: expected one JSON object"),
        ("config.json", "{", "config.json, line 1: not JSON"),
        ("history.jsonl", "3\n", "history.jsonl, line 1: expected one JSON object"),
    ],
)
def test_broken_file_is_named(minimal_run, name, content, message):
    (minimal_run / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        report.write_report(minimal_run)


def test_torn_last_line_of_the_log_is_dropped(minimal_run):
    (minimal_run / "metrics.jsonl").write_text('{"kind": "train", "step": 5, "loss/text": 1.0}\n{"kind": "tra')
    assert "training steps" in report.write_report(minimal_run).read_text()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "record 0: expected an object with a"),
        ({"task": "tts", "input": [{"kind": "smell"}]}, "a segment is text, or an image"),
        ({"task": "tts", "input": [{"kind": "speech", "file": "no.wav"}]}, "no.wav does not exist"),
        ({"task": "tts", "input": [{"kind": "image", "file": "no.gif"}]}, "no.gif is no image file"),
        ({"task": "tts", "input": [{"kind": "image", "file": "../metrics.png"}]}, "lies outside"),
        ({"task": "tts", "tokens": [1, 2], "modalities": [0]}, "2 tokens but 1 modalities"),
        ({"task": "tts", "tokens": [1], "modalities": [4]}, "4 is not a valid Modality"),
        ({"task": "tts", "tokens": [1], "states": [9]}, "9 is not a valid State"),
        ({"task": "tts", "turns": ["hello"]}, "a turn is"),
        ({"task": "tts", "turns": 3}, '"turns" is 3; expected a list'),
        ({"task": "tts", "input": "hello"}, "\"input\" is 'hello'; expected a list"),
        ({"task": "tts", "correct": "yes"}, "\"correct\" is 'yes'; expected a bool"),
        ({"task": "tts", "clocks": [1]}, '"clocks" is [1]; expected a dict'),
    ],
)
def test_bad_sample_is_named(minimal_run, record, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        report.write_report(with_samples(minimal_run, record))
    assert "\n" not in str(caught.value)


def test_without_jinja2_the_error_says_what_to_install(minimal_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"aromni_jax\[demo\]"):
        report.write_report(minimal_run)


# -- parts ----------------------------------------------------------------------------------------------


def test_bounds_decide_the_verdict():
    rows = report_scores.scores(
        {
            "asr": {"wer": 0.1, "bound": 0.15},
            "tts": {"difference": 0.3, "bound": 0.2},
            "caption": {"exact": 0.6, "bound": 0.6},
            "t2i": {"exact": 0.9, "per_digit": 0.7, "metric": "per_digit", "bound": 0.8},
            "chat": {"exact": 0.5},
            "told": {"wer": 0.1, "bound": 0.15, "passed": False},
        }
    )
    assert [row.met for row in rows] == [True, False, True, False, None, False]
    assert [row.bound for row in rows][:4] == ["≤ 15 %", "≤ 20 points", "≥ 60 %", "≥ 80 %"]


def test_nested_scores_are_rows_and_everything_else_is_a_note():
    held_out = {
        "held_out_voice": {"asr": {"wer": 0.5}, "speaker": "p2"},
        "caption": {"exact": 1.0, "by": {"one": 0.25}},
    }
    voice, asr, caption = report_scores.scores(held_out)
    assert (voice.depth, asr.depth, caption.depth) == (0, 1, 0)
    assert voice.notes == (("speaker", "p2"),) and caption.notes == (("by / one", "25.0 %"),)


def test_best_of_a_column_follows_its_direction():
    rows = [
        {"name": "a", "metrics": {"loss/text": [0.5, 0.01], "caption_exact": [0.5, 0.01]}},
        {"name": "b", "metrics": {"loss/text": [0.4, 0.01], "caption_exact": [0.49, 0.02]}},
        {"name": "c", "metrics": {"caption_exact": [0.3, 0.02]}},
    ]
    head, body = report_scores.ablation_table(rows)
    assert head == [("loss, text", True), ("caption exact", False)]
    assert [[cell.mark for cell in cells] for _, _, cells in body] == [["", "best"], ["best", "close"], ["", ""]]


_trees = st.recursive(
    st.integers(0, 9) | st.text(max_size=3) | st.none(),
    lambda below: st.dictionaries(st.sampled_from("abcd"), below, max_size=3) | st.lists(below, max_size=2),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from("abcd"), _trees, max_size=4), st.sampled_from("abcd"), st.sampled_from("abcd"))
def test_what_is_not_taken_is_listed(values, first, second):
    kept = report_figures.Leaves(values)
    taken = kept.take(first, second)
    rest = len(kept.rest())
    everything = len(report_figures.Leaves(values).rest())
    assert rest == everything - (0 if taken is None and second not in _mapping(values.get(first)) else _leaves(taken))


def _mapping(value):
    return value if isinstance(value, dict) else {}


def _leaves(value):
    return len(list(report_figures.leaves(value)))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.0, "1"), (0.0421, "0.0421"), (9.996, "10"), (1031, "1,031"), (16_204, "16.2 k"),
     (1_312_640, "1.31 M"), (3e-4, "3e-4"), (-2.5, "-2.5"), (11_050_000_000, "11.1 B"), (float("nan"), "not finite")],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert report_charts.number(value) == text


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.booleans())
@example([5e-324, 1e-323], True)
@example([5e-324, 1e-323], False)
def test_charts_stay_inside_their_frame(values, log):
    series = report_charts.Series("training", "train", tuple(enumerate(values)))
    drawing = report_charts.line_chart([series], title="any", log=log)
    points = [pair.split(",") for text in re.findall(r'points="([^"]*)"', drawing) for pair in text.split()]
    assert all(
        -0.5 <= float(x) <= report_charts.WIDTH + 0.5 and -0.5 <= float(y) <= report_charts.HEIGHT + 0.5
        for x, y in points
    )
    assert bool(drawing) == (not log or any(value > 0 for value in values))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=1000))
@example([5e-324])
def test_bars_stay_inside_their_frame(values):
    drawing = report_charts.histogram(values, title="any", x_label="code", css="m-image")
    shape = r'<rect class="bar m-image" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"'
    bars = [tuple(map(float, bar)) for bar in re.findall(shape, drawing)]
    assert len(bars) == len(report_charts.buckets(list(enumerate(values)), 180)) <= 180
    assert all(x >= 0 and x + w <= report_charts.WIDTH and y >= 0 and h >= 0 for x, y, w, h in bars)
    assert len({round(y + h) for _, y, _, h in bars}) == 1, "all stand on one line"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=1000))
def test_buckets_keep_the_range_and_the_mean(values):
    row = report_charts.buckets(list(enumerate(values)))
    assert len(row) <= 150
    assert min(b.low for b in row) == min(values) and max(b.high for b in row) == max(values)


def test_spectrogram_shows_the_pitch_of_a_tone():
    t = np.arange(16_000) / 16_000
    rows = [
        report_media.mel_decibels(np.sin(2 * np.pi * hertz * t), 16_000).mean(axis=1).argmax() for hertz in (300, 3000)
    ]
    assert rows[0] > rows[1]  # low pitch lies below


@pytest.mark.parametrize("samples", [1, 100, 16_000, 400_000])
def test_spectrogram_of_any_length(samples):
    picture = report_media.mel_decibels(np.zeros(samples, np.float32), 16_000)
    assert picture.shape[0] == 56 and 1 <= picture.shape[1] <= 361


def test_budget_takes_one_of_each_task_in_turn():
    def sample(task, size):
        segment = report_samples.Segment("image", uri="x" * size)
        return report_samples.Sample(task, "", (((), (segment,)),), None, None, None, (), ())

    samples = [sample("tts", 10), sample("tts", 10), sample("asr", 10), sample("chat", 25)]
    kept = report_samples.within_budget(samples, 30)
    assert [s.task for s in kept] == ["tts", "tts", "asr"]
    assert [s.task for s in report_samples.within_budget(samples, 20)] == ["tts", "asr"]
