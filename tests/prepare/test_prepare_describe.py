"""`aromni inspect data`: figures that add up, and records as media again."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from aromni_jax.cli.main import main
from aromni_jax.codecs import ImageCodec, SpeechCodec
from aromni_jax.prepare.describe import record_at
from tests.prepare import corpora


def inspect(capsys, *words):
    code = main(["inspect", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_mixture_lengths_and_packing(folder_set, capsys):
    out, manifest, _ = folder_set
    code, told, _ = inspect(capsys, "data", out)
    assert code == 0 and inspect(capsys, out)[1] == told
    whole = manifest.figures("train")
    for task, part in manifest.splits["train"].items():
        assert f"train/{task}: {part.examples} examples ({part.examples / whole['examples']:.1%})" in told
    assert f"packed together in {whole['row_count']} rows, filled {whole['packing']['packed']:.1%}" in told
    train = told[told.index("tokens of an example") : told.index("test/")]
    bars = [int(count) for count in re.findall(r"\.\.\d+ +(\d+)", train)]
    assert 1 < len(bars) <= 8 and sum(bars) == whole["examples"]
    lengths = [len(record_at(out, "train", number)) for number in range(whole["examples"])]
    assert f"{min(lengths)} to {max(lengths)}" in train
    low, high = map(int, re.search(r"(\d+)\.\.(\d+)", train).groups())
    assert low == min(lengths) and bars[0] == sum(low <= length <= high for length in lengths)
    assert "rejected: 0" in told


def test_rejects_are_shown(tmp_path, capsys):
    place = corpora.side_by_side(tmp_path / "media")
    (place / "png" / "0.txt").unlink()
    corpora.prepare(place, tmp_path / "data", tasks=["image_caption"])
    _, told, _ = inspect(capsys, "data", tmp_path / "data")
    assert "rejected: 1, named in" in told and "reasons: no text 1 (100.0%)" in told
    assert "0.png (png/0): no text (a caption or transcript is missing or empty)" in told


@pytest.mark.parametrize("task", ["text_to_image", "speech_to_text"])
def test_a_record_comes_back_as_media(folder_set, tmp_path, capsys, task):
    out, manifest, _ = folder_set
    examples = manifest.figures("train")["examples"]
    number = next(n for n in range(examples) if record_at(out, "train", n).task == task)
    record, v = record_at(out, "train", number), manifest.vocabulary
    code, told, _ = inspect(capsys, out, "--record", number, "--out", tmp_path / "media")
    tokens = record.tokens.astype(int)
    assert code == 0 and record.id in told and "<eoh>" in told
    files = sorted(path.name for path in (tmp_path / "media").iterdir())
    if task == "text_to_image":
        assert files == ["1_text.txt", "2_image.png"]
        number = int(record.id[-1])
        assert (tmp_path / "media" / files[0]).read_text() == f"draw {corpora.CAPTIONS[number]}\n"
        expected = ImageCodec.load("numbers").to_pil(v.image_codes(tokens[v.image.mask(tokens)])[None])[0]
        assert np.array_equal(Image.open(tmp_path / "media" / files[1]), expected)
    else:
        assert files == ["1_text.txt", "2_speech.wav", "3_text.txt"]
        assert (tmp_path / "media" / files[2]).read_text().strip() in corpora.TRANSCRIPTS
        expected = SpeechCodec.load("numbers").decode([v.speech_codes(tokens[v.speech.mask(tokens)])])[0]
        wave, rate = soundfile.read(tmp_path / "media" / files[1])
        assert rate == corpora.RATE and np.abs(wave - np.clip(expected, -1, 1)).max() < 1e-4


def test_what_cannot_be_shown(folder_set, tmp_path, capsys):
    out, manifest, _ = folder_set
    count = manifest.figures("train")["examples"]
    assert (
        f"train has {count} records, counted from 0: there is no {count}" in inspect(capsys, out, "--record", count)[2]
    )
    assert "no split 'dev'" in inspect(capsys, out, "--record", 0, "--split", "dev")[2]
    assert "no prepared data set" in inspect(capsys, "data", tmp_path)[2]
    words = [out, "--record", 0, "--out", tmp_path, "--world", "things"]
    assert re.search(r"things: \w+ codec \w+, and the data set was made with", inspect(capsys, *words)[2])
    (tmp_path / "ids.jsonl").write_text(json.dumps({"discrete_code": [0, 16384, 2], "task": "text_to_text"}) + "\n")
    assert main(["prepare", str(tmp_path / "ids.jsonl"), "--out", str(tmp_path / "data"), "--held-out-every", "0"]) == 0
    capsys.readouterr()
    code, told, _ = inspect(capsys, tmp_path / "data", "--record", 0)
    assert code == 0 and "text[1: 16384]" in told
    assert "made without codecs" in inspect(capsys, tmp_path / "data", "--record", 0, "--out", tmp_path)[2]


@pytest.mark.parametrize("line", [b"{", b"5", b'{"file": "a"}', b"\xff"])
def test_a_damaged_list_of_rejects_is_named(folder_set, tmp_path, capsys, line):
    shutil.copytree(folder_set[0], tmp_path / "data")
    (tmp_path / "data" / "rejects.jsonl").write_bytes(line)
    code, _, err = inspect(capsys, "data", tmp_path / "data")
    assert code == 1 and "rejects.jsonl, line 1: no reject" in err and err.count("\n") == 1


def test_another_text_codec_puts_no_words_into_a_record(folder_set, capsys):
    code, told, _ = inspect(capsys, "data", folder_set[0], "--record", 0, "--world", "things")
    assert code == 0 and "text[" in told and '"' not in told


@pytest.mark.parametrize("change", [{"request": [1]}, {"joint": {}}])
def test_an_edited_manifest_is_named(folder_set, tmp_path, capsys, change):
    shutil.copytree(folder_set[0], tmp_path / "data")
    values = json.loads((tmp_path / "data" / "manifest.json").read_text())
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(values | change))
    code, _, err = inspect(capsys, "data", tmp_path / "data", "--record", 0)
    assert code == 1 and "no data set manifest" in err and err.count("\n") == 1
