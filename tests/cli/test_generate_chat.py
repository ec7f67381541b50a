"""`aromni generate` and `aromni chat` on real files, with the shipped codecs and a model of random weights."""

import json
import re

import jax
import numpy as np
import PIL.Image
import pytest
import soundfile

from aromni_jax.cli.main import main
from aromni_jax.codecs import ImageCodec, SpeechCodec, TextCodec
from aromni_jax.config import ModelConfig
from aromni_jax.convert import save_model
from aromni_jax.model import init_params
from aromni_jax.vocabulary import JointVocabulary


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model, a recording, a picture, and broken ones."""
    folder = tmp_path_factory.mktemp("files")
    text, image, speech = (codec.load("numbers") for codec in (TextCodec, ImageCodec, SpeechCodec))
    vocabulary = JointVocabulary.compact(
        text_pieces=text.num_pieces, image_codes=image.num_codes, image_tokens=image.tokens_per_image,
        speech_codes=speech.num_codes,
    )  # fmt: skip
    config = ModelConfig(
        vocab_size=vocabulary.size, dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, ffn_dim=48, max_positions=512
    )
    params = init_params(config, jax.random.PRNGKey(0))
    save_model(folder / "model", params, config, vocabulary, {"world": "numbers", "template": "brief"})
    rng = np.random.default_rng(0)
    soundfile.write(folder / "noise.wav", 0.1 * rng.normal(size=8000), 16000)
    PIL.Image.fromarray(rng.integers(0, 255, (28, 56), np.uint8)).save(folder / "dots.png")
    (folder / "broken.wav").write_bytes(b"RIFF0000")
    (folder / "broken.png").write_bytes(b"\x89PNG....")
    return folder


def generate(files, *words):
    return main(["generate", *words, "--model", str(files / "model"), "--max-new-tokens", "40"])


def results(out):
    return json.loads((out / "result.json").read_text())["results"]


@pytest.mark.parametrize(
    ("task", "source", "suffix"),
    [
        ("asr", "noise.wav", ".txt"),
        ("caption", "dots.png", ".txt"),
        ("tts", None, ".wav"),
        ("t2i", None, ".png"),
        ("s2i", "noise.wav", ".png"),
        ("i2s", "dots.png", ".wav"),
    ],
)
def test_every_task_writes_its_file(files, tmp_path, task, source, suffix):
    given = "two three" if source is None else str(files / source)
    assert generate(files, task, "--input", given, "--out", str(tmp_path)) == 0
    (record,) = results(tmp_path)
    (name,) = record["files"]
    assert name.endswith(suffix) and (tmp_path / name).stat().st_size > 0
    assert record["finish"] in ("stop", "length") and record["usage"]["new_tokens"] <= 40


def test_bad_inputs_are_reported_and_the_others_done(files, tmp_path, capsys):
    paths = [str(files / name) for name in ("broken.wav", "noise.wav", "none.wav")]
    assert generate(files, "asr", "--input", *paths, "--out", str(tmp_path)) == 1
    records = results(tmp_path)
    assert ["error" in record for record in records] == [True, False, True]
    assert "broken.wav" in records[0]["error"] and "does not exist" in records[2]["error"]
    said = capsys.readouterr()
    assert "1 of 3 done" in said.out and "broken" not in said.out
    assert "broken.wav" in said.err and "none.wav" in said.err


def test_many_inputs_from_files(files, tmp_path):
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    rows = [{"text": "three", "id": "c"}, {"text": "four"}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [str(tmp_path / name) for name in ("texts.txt", "texts.jsonl")]
    sampling = ["--temperature", "1.0", "--guidance-text", "2.0", "--seed", "3"]
    assert generate(files, "t2i", "--input", *given, *sampling, "--out", str(tmp_path / "out")) == 0
    records = results(tmp_path / "out")
    assert [record["id"] for record in records] == ["one", "two", "c", "four"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png"))[2] == "0002_c.png"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"txt": "a"}', 'line 1: expected an object with a string "text"'),
        ('{"text": "a", "idd": 1}', "line 1: unknown field 'idd'"),
    ],
)
def test_bad_lists_are_one_clear_line(files, tmp_path, capsys, line, message):
    (tmp_path / "list.jsonl").write_text(line)
    assert generate(files, "tts", "--input", str(tmp_path / "list.jsonl"), "--out", str(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_bad_models_and_words(files, tmp_path, capsys):
    assert main(["generate", "tts", "--input", "a", "--out", str(tmp_path), "--model", str(tmp_path / "no")]) == 1
    assert generate(files, "tts", "--input", "a", "--out", str(tmp_path), "--temperature", "-1") == 1
    assert "temperature -1.0 is out of range" in capsys.readouterr().err
    assert generate(files, "tts", "--input", "a", "--out", str(tmp_path), "--seed", "-1") == 1
    assert "seed -1 is outside 0.." in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        generate(files, "video", "--input", "a", "--out", str(tmp_path))
    assert caught.value.code == 2


def chat(files, out, *words):
    return main(["chat", "--model", str(files / "model"), "--out", str(out), "--max-new-tokens", "24", *words])


def test_dialogs_from_a_file(files, tmp_path, capsys):
    dialogs = [
        {
            "dialog_id": "a/../b",
            "turns": [
                {"text": "two"},
                {"wavpath": "noise.wav"},
                {"wav_path": "none.wav"},
                {"wav_path": "noise.wav", "silence_head_sec": 0.1, "image_paths": ["dots.png"], "user_append_text": ""},
                {"text": "again", "reset": True},
            ],
        },
        {"turns": [{"audio_path": "broken.wav"}, {}, {"text": 5}, {"text": "a", "image_paths": [5]}]},
    ]
    (tmp_path / "d.json").write_text(json.dumps(dialogs))
    words = ["--input", str(tmp_path / "d.json"), "--base-dir", str(files), "--save-tokens"]
    assert chat(files, tmp_path / "out", *words) == 1
    log = json.loads((tmp_path / "out" / "log.json").read_text())
    assert [("error" in entry, entry["dialog_id"]) for entry in log] == [
        (False, "a_.._b"), (True, "a_.._b"), (True, "a_.._b"), (False, "a_.._b"), (False, "a_.._b"),
        (True, "dialog_0001"), (True, "dialog_0001"), (True, "dialog_0001"), (True, "dialog_0001"),
    ]  # fmt: skip
    assert "did you mean 'wav_path'" in log[1]["error"] and "needs text or wav_path" in log[6]["error"]
    assert log[3]["usage"]["prompt_tokens"] > log[0]["usage"]["prompt_tokens"] + 20
    reply = json.loads((tmp_path / "out" / "a_.._b" / "turn_0004" / "reply.json").read_text())
    assert len(reply["tokens"]) == reply["usage"]["new_tokens"]
    # A bad turn leaves no trace in the history; a reset one sees only itself.
    first, last = log[0]["usage"]["prompt_tokens"], log[4]["usage"]["prompt_tokens"]
    assert last < first + 10
    assert "text must be a text, got 5" in log[7]["error"] and "list of paths" in log[8]["error"]
    assert "3 of 9 turns done" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", "[1]", '{"turns": 3}'])
def test_bad_dialog_files(files, tmp_path, capsys, text):
    (tmp_path / "d.json").write_text(text)
    assert chat(files, tmp_path / "out", "--input", str(tmp_path / "d.json")) == 1
    assert str(tmp_path / "d.json") in capsys.readouterr().err


def test_the_terminal(files, tmp_path, capsys, monkeypatch):
    lines = iter(["two", f"/image {files / 'dots.png'}", "", "/speech none.wav", "/what", "/reset", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert chat(files, tmp_path) == 0
    out = capsys.readouterr().out
    reads = [(int(fed), int(whole)) for fed, whole in re.findall(r"read (\d+) of (\d+)\)", out)]
    assert len(reads) == 2 and reads[0][0] == reads[0][1] > 0 and reads[1][0] < reads[1][1] - reads[0][1]
    assert "heard>" in out and "none.wav does not exist" in out and "forgotten" in out


def test_the_terminal_ends_with_its_input(files, tmp_path, monkeypatch):
    def closed(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    assert chat(files, tmp_path) == 0
