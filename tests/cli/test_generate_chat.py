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
from aromni_jax.tasks import Assistant, reply_files
from aromni_jax.tasks.synthesis import SYNTHESISERS
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
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
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


def test_bad_lines_are_named_and_the_others_done(files, tmp_path, capsys):
    (tmp_path / "list.jsonl").write_text('{\n{"txt": "a"}\n{"text": "a", "idd": 1}\n{"text": "one"}\n')
    assert generate(files, "tts", "--input", str(tmp_path / "list.jsonl"), "--out", str(tmp_path / "out")) == 1
    said = capsys.readouterr()
    for line, message in ((1, "not JSON"), (2, 'expected an object with a string "text"'), (3, "unknown field 'idd'")):
        assert f"list.jsonl, line {line}: {message}" in said.err
    assert "1 of 4 done" in said.out and [row["id"] for row in results(tmp_path / "out") if "files" in row] == ["one"]


def test_the_same_command_goes_on(files, tmp_path, capsys, monkeypatch):
    words = ["tts", "--input", "one", "two", "--out", str(tmp_path)]

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Assistant, "answers", interrupted)
        assert generate(files, *words) == 130
    assert "0 of 2 done" in (said := capsys.readouterr().err) and "the same command goes on" in said
    assert generate(files, *words) == 0
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.wav")}
    assert len(times) == 2 and generate(files, *words) == 0
    assert "2 of 2 done (2 of them before)" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.wav")} == times


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["t2i", "--input", "one " * 600], "the context only 512; shorten it"),
        (
            ["t2i", "--input", "one", "--max-new-tokens", "9"],
            "begins with image needs room for 35 tokens, but max_new_tokens is 9",
        ),
        (["asr", "--input", "empty.wav"], "empty.wav holds no samples"),
        (["tts", "--input", " "], "the text is empty"),
        (["tts", "--input", "one", "--template", "breif"], "unknown template 'breif'; choose one of aromni, brief"),
    ],
)
def test_what_cannot_be_is_one_clear_line(files, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(files)
    command = ["generate", *words, "--model", str(files / "model"), "--out", str(tmp_path)]
    assert main(command) == 1
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
                {"text": "again", "reset": True, "speaker_wav": "noise.wav"},
            ],
        },
        {"turns": [{"audio_path": "broken.wav"}, {"wav_path": "empty.wav"}, {}, {"text": "one " * 600}]},
        {"turns": 3},
    ]
    (tmp_path / "d.json").write_text(json.dumps(dialogs))
    words = ["--input", str(tmp_path / "d.json"), "--base-dir", str(files), "--save-tokens"]
    assert chat(files, tmp_path / "out", *words) == 1
    log = json.loads((tmp_path / "out" / "batch_log.json").read_text())
    errors = [
        (1, ""), (2, "did you mean 'wav_path'"), (3, "none.wav does not exist"), (2, ""), (3, ""),
        (1, "broken.wav as sound"), (2, "empty.wav holds no samples"), (3, "needs text or wav_path"),
        (4, "the context only 512"), (1, "turns must be a list, got 3"),
    ]  # fmt: skip
    assert [entry["turn_index"] for entry in log] == [index for index, _ in errors]
    assert all(message in entry.get("error", "") for entry, (_, message) in zip(log, errors, strict=True))
    assert [("error" in entry) for entry in log] == [bool(message) for _, message in errors]
    assert [entry["dialog_id"] for entry in log] == ["a/../b"] * 5 + ["dialog_0001"] * 4 + ["dialog_0002"]
    assert log[3]["usage"]["prompt_tokens"] > log[0]["usage"]["prompt_tokens"] + 20
    assert log[3]["usage"]["reused_tokens"] > 16, "the second turn does not read the first again"
    # A bad turn leaves no trace in the history; a reset one sees only itself.
    assert log[4]["usage"]["prompt_tokens"] < log[0]["usage"]["prompt_tokens"] + 10
    folders = sorted((tmp_path / "out" / "a_.._b").iterdir())
    made = [log[0], log[3], log[4]]
    assert [folder.name for folder in folders] == [f"turn_{n:04d}_{meta['run_uid']}" for n, meta in enumerate(made, 1)]
    assert json.loads((folders[1] / "meta.json").read_text()) == log[3]
    assert len(json.loads((folders[1] / "output_tokens.json").read_text())) == log[3]["usage"]["new_tokens"]
    assert log[3]["image_paths"] == [str(files / "dots.png")] and log[3]["user_append_text"] == ""
    assert log[0]["user_append_text"] == "chat" and log[3]["tts"]["silence_head_sec"] == 0.1
    said = capsys.readouterr()
    assert "3 of 10 turns done" in said.out and said.err.count("\n") == 8
    assert "a/../b turn 5: speaker_wav is not used by --synthesiser none" in said.err


@pytest.mark.slow
def test_the_shipped_model_answers_in_kind(files, tmp_path):
    """Speech to speech and a picture, speech with a picture to speech, text to both."""
    for task, suffix in (("tts", "wav"), ("t2i", "png")):
        assert main(["generate", task, "--input", "four two", "--out", str(tmp_path)]) == 0
        (tmp_path / f"0000_four_two.{suffix}").rename(tmp_path / f"given.{suffix}")
    spoken = {"wav_path": "given.wav"}
    turns = [spoken, {**spoken, "image_paths": ["given.png"], "reset": True}, {"text": "four two", "reset": True}]
    (tmp_path / "d.json").write_text(json.dumps(turns))
    assert main(["chat", "--input", str(tmp_path / "d.json"), "--out", str(tmp_path / "out")]) == 0
    log = json.loads((tmp_path / "out" / "batch_log.json").read_text())
    assert [entry["reply"] for entry in log] == ["four two"] * 3
    assert all(entry["saved_audios"] for entry in log)
    assert log[0]["saved_images"] and log[2]["saved_images"]


def test_the_log_of_an_interrupted_run(files, tmp_path, monkeypatch):
    """Two dialogs side by side, the shorter one first to end: the log has what is done, in the file's order."""
    dialogs = [{"dialog_id": "a", "turns": [{"text": "one"}] * 2}, {"dialog_id": "b", "turns": [{"text": "two"}] * 2}]
    (tmp_path / "d.json").write_text(json.dumps(dialogs))
    write, ids = reply_files.write_turn, []

    def fourth_interrupted(assistant, reply, folder, dialog_id, *args):
        ids.append(dialog_id)
        if len(ids) == 4:
            raise KeyboardInterrupt
        return write(assistant, reply, folder, dialog_id, *args)

    monkeypatch.setattr(reply_files, "write_turn", fourth_interrupted)
    assert chat(files, tmp_path / "out", "--input", str(tmp_path / "d.json")) == 130
    assert sorted(ids[:2]) == ["a", "b"], "the first turns of both before the second of either"
    log = json.loads((tmp_path / "out" / "batch_log.json").read_text())
    assert [entry["dialog_id"] for entry in log] == sorted(ids[:3])
    assert not list(tmp_path.glob("out/*/.turn*"))


def test_dialogs_side_by_side_are_told_as_they_stand(files, tmp_path):
    """One that comes back in the file begins anew, and numbers its folders on."""
    words = [("a", "one"), ("b", "two"), ("a", "one"), ("a", "two")]
    turns = [{"dialog_id": name, "text": text} for name, text in words]
    (tmp_path / "d.json").write_text(json.dumps(turns))
    assert chat(files, tmp_path / "out", "--input", str(tmp_path / "d.json")) == 0
    log = json.loads((tmp_path / "out" / "batch_log.json").read_text())
    assert [(entry["dialog_id"], entry["text"], entry["turn_index"]) for entry in log] == [
        (name, text, index) for (name, text), index in zip(words, [1, 1, 2, 3], strict=True)
    ]
    read = [entry["usage"]["prompt_tokens"] for entry in log]
    assert read[0] == read[2] == read[1] < read[3] - 20


def test_texts_can_be_spoken(files, tmp_path, capsys, monkeypatch):
    """As a recording of the same words would be; a recording itself needs no synthesiser."""
    wave, rate = soundfile.read(files / "noise.wav", dtype="float32")
    monkeypatch.setitem(SYNTHESISERS, "fake", lambda: lambda text, voice: (wave, rate))
    (tmp_path / "d.json").write_text(json.dumps([{"text": "two"}, {"wav_path": "noise.wav", "reset": True}]))
    words = ["--input", str(tmp_path / "d.json"), "--base-dir", str(files), "--save-tokens"]
    assert chat(files, tmp_path / "out", *words, "--synthesiser", "fake") == 0
    log = json.loads((tmp_path / "out" / "batch_log.json").read_text())
    assert log[0]["usage"]["prompt_tokens"] == log[1]["usage"]["prompt_tokens"] > 20
    tokens = [path.read_text() for path in sorted(tmp_path.glob("out/*/*/output_tokens.json"))]
    assert tokens[0] == tokens[1]
    assert [entry["tts"]["synthesiser"] for entry in log] == ["fake", "fake"]
    assert chat(files, tmp_path / "out", *words, "--synthesiser", "sam") == 1
    assert "no synthesiser 'sam'; choose none, hibari, espeak or cosyvoice2:FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"turns": []}'])
def test_bad_dialog_files(files, tmp_path, capsys, text):
    (tmp_path / "d.json").write_text(text)
    assert chat(files, tmp_path / "out", "--input", str(tmp_path / "d.json")) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "d.json") in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_any_turn(files, tmp_path, capsys):
    (tmp_path / "d.json").write_text(json.dumps([{"text": "one"}]))
    assert chat(files, tmp_path / "d.json" / "out", "--input", str(tmp_path / "d.json")) == 1
    error = capsys.readouterr().err
    assert "cannot write" in error and error.count("\n") == 1


def test_the_terminal(files, tmp_path, capsys, monkeypatch):
    lines = iter(["two", f"/image {files / 'dots.png'}", "", "/speech none.wav", "/what", "/reset", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert chat(files, tmp_path) == 0
    out = capsys.readouterr().out
    reads = [(int(fed), int(whole)) for fed, whole in re.findall(r"read (\d+) of (\d+)\)", out)]
    assert len(reads) == 2 and reads[0][0] == reads[0][1] > 0 and reads[1][0] < reads[1][1] - reads[0][1]
    assert "heard>" in out and "none.wav does not exist" in out and "forgotten" in out
    metas = [json.loads(path.read_text()) for path in sorted((tmp_path / "terminal").glob("*/meta.json"))]
    assert [(meta["turn_index"], meta["text"], meta["image_paths"]) for meta in metas] == [
        (1, "two", None),
        (2, None, [str(files / "dots.png")]),
    ]


def test_the_terminal_ends_with_its_input(files, tmp_path, monkeypatch):
    def closed(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    assert chat(files, tmp_path) == 0


def test_negative_prompts_need_guidance_and_a_picture(files, tmp_path, capsys):
    words = ["--input", "one two", "--negative", "nine", "--out", str(tmp_path)]
    assert generate(files, "t2i", *words, "--guidance-text", "2", "--cache-dtype", "int8") == 0
    assert generate(files, "t2i", *words) == 1
    assert generate(files, "tts", *words, "--guidance-text", "2") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("aromni: a negative prompt needs guidance")
    assert second == "aromni: text_to_speech: takes no negative prompt; only text_to_image does"
