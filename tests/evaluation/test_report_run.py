"""The page of a run that `aromni train` made: finished or not, restarted, with samples or without."""

import html
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from aromni_jax.cli.main import main
from aromni_jax.codecs import write_png
from aromni_jax.errors import UserError
from aromni_jax.evaluation import report, report_run

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import write_fake_training


@pytest.fixture
def training(tmp_path):
    return write_fake_training(tmp_path / "mine")


def words(page):
    """What a reader sees, in one line."""
    body = re.sub(r"<(script|style|title)>.*?</\1>", "", page[page.index("<body>") :], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_a_run_in_progress_shows_where_it_is_and_what_it_has_cost(training, capsys):
    assert main(["report", str(training)]) == 0
    assert capsys.readouterr().out == f"written: {training / 'report.html'}\n"
    text = words((training / "report.html").read_text())
    assert "training steps 40 of 60: not finished" in text and "At step 40 of 60 when this page was written" in text
    assert "held-out loss 1.5" in text and "restarts 1" in text and "skipped steps 2" in text and "MFU 41.0 %" in text
    # 4 windows of 20 s, of which 5 s were evaluation and samples; two starts of 10 s; 14 s made again; 6 s of saving.
    assert "2 min 00 s, 50.0 % of it in steps" in text and "goodput 50.0 %" in text
    for part in ("training steps 56.0 s", "waiting for data 4.0 s", "evaluation 12.0 s", "compiling the step 16.0 s"):
        assert part in text
    assert "steps made again after a restart 14.0 s" in text
    assert "2026-11-20 11:00:00 UTC 20 7 14.0 s 10.0 s 256 x TPU v5 lite" in text and "SIGTERM, at step 20" in text
    assert "Held-out scores" not in text and "make demo" not in text and "aromni train" in text


def test_curves_by_modality_task_and_speed(training):
    text = words(report.write_report(training).read_text())
    for title in ("Text", "Speech", "Chat", "Learning rate", "Gradient norm", "Useful tokens per second", "MFU (bf16"):
        assert title in text
    assert "Share of time waiting for data" in text and "training 0.05 → 0.05" in text
    assert "training 5 → 1.25" in text and "held-out 5 → 1.25" in text  # the task's


def test_samples_over_time_in_order_with_what_was_wanted(training):
    page = report.write_report(training).read_text()
    text = words(page)
    assert text.index("three, at 10") < text.index("three, at 20") < text.index("three, at 30")
    assert "given two three → held-out answer two three step 10" in text
    assert page.count("<audio") == 3 and page.count('alt="picture"') == 3


def test_machine_versions_and_recipe_are_those_of_the_last_start(training):
    text = words(report.write_report(training).read_text())
    assert "devices 256 x TPU v5 lite mesh fsdp 256" in text and "jax 0.10.2" in text and '"sample_every": 10' in text
    assert "parameters 526 k" in text and "MFLOP per token" in text


def test_an_interrupted_log_a_half_sample_folder_and_no_starts(training):
    log = (training / "metrics.jsonl").read_text()
    (training / "metrics.jsonl").write_text(log + '{"step": 50, "ki')
    (training / "history.jsonl").unlink()
    (training / "samples" / "0000040").mkdir()
    text = words(report.write_report(training).read_text())
    assert "training steps 40" in text and "step 40 " not in text.split("Samples over time")[2].split("Course")[0]
    assert "Started" not in text


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.json").write_text('{"train": {"steps": 5}}')
    text = words(report.write_report(tmp_path).read_text())
    assert "The log of this run holds no times" in text and "Samples over time" not in text


def test_a_finished_and_judged_run_keeps_its_own_figures(training):
    metrics = {"created": "2025-01-02T03:04:00+00:00", "environment": {"cpu": "mine"}, "held_out": {}}
    (training / "metrics.json").write_text(json.dumps(metrics))
    text = words(report.write_report(training).read_text())
    assert "Held-out scores" in text and "cpu mine" in text and "2 January 2025" in text


def test_as_many_steps_as_fit_evenly_spread_with_first_and_last(tmp_path):
    folder = write_fake_training(tmp_path, steps=tuple(range(10, 210, 10))) / "samples"

    def shown(budget):
        return [step for step, _ in report_run.prompts(folder, budget)[0][0].frames]

    assert shown(10**9) == [10, 40, 60, 90, 120, 150, 170, 200]
    assert shown(0) == [200]
    some = shown(120_000)
    assert 1 < len(some) < 8 and some[0] == 10 and some[-1] == 200


def test_a_sample_whose_file_is_gone_is_named(training):
    (training / "samples" / "0000020" / "t2i_out_0.png").unlink()
    with pytest.raises(UserError, match=r"0000020/t2i_out_0\.png"):
        report.write_report(training)


def test_samples_too_large_for_the_page_are_counted(training, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    for step in (10, 20, 30):
        write_png(training / "samples" / f"{step:07d}" / "t2i_out_0.png", noise)
    monkeypatch.setattr(report, "MAX_BYTES", 120_000)
    page = report.write_report(training).read_text()
    assert len(page) < report.MAX_BYTES and "1 more would make this page too long" in words(page)


def test_media_are_read_once(training, monkeypatch):
    read, seen = report_run.read_segments, []
    monkeypatch.setattr(report_run, "read_segments", lambda *given: seen.append(given[2]) or read(*given))
    report_run.prompts(training / "samples", 0)
    assert len(seen) == 3 * 3 * 3  # steps, tasks, sides


HUGE = "9" * 400
SAMPLES = "samples/0000030/samples.json"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "[" * 100_000, "not JSON"),
        ("config.json", '{"a": ' + "9" * 5000 + "}", "not JSON"),
        ("config.json", '{"train": [1]}', ""),
        ("config.json", f'{{"train": {{"steps": {HUGE}}}}}', ""),
        ("metrics.jsonl", "[" * 100_000 + "\n{}", "line 1: not JSON"),
        ("metrics.jsonl", f'{{"kind": "train", "step": {HUGE}, "loss/text": {HUGE}}}', ""),
        ("metrics.jsonl", '{"kind": "train", "step": 0, "loss": NaN, "loss/text": Infinity}', ""),
        ("history.jsonl", '{"kind": "start", "seconds": 5, "hardware": "x", "versions": [1], "parameters": "x"}', ""),
        (SAMPLES, '[{"task": ', "0000030/samples.json, line 1: not JSON"),
        (SAMPLES, "5", "expected a JSON list"),
        (SAMPLES, '["a"]', "record 0: expected an object with lists"),
        (SAMPLES, '[{"task": "a", "output": 5}]', "record 0: expected an object with lists"),
        (SAMPLES, r'[{"output": [{"kind": "image", "file": "a\u0000.png"}]}]', "does not exist"),
        ("samples/old30/samples.json", "[]", ""),
        ("samples/²/samples.json", "[]", ""),
        ("ablations.json", '{"rows": 5}', ""),
        ("ablations.json", '{"rows": [{"name": "a", "metrics": 5}]}', ""),
    ],
)
def test_broken_files_are_named_or_left_out(training, capsys, file, text, message):
    (training / file).parent.mkdir(exist_ok=True)
    (training / file).write_text(text)
    assert main(["report", str(training)]) == bool(message)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == bool(message)
