"""Dialogs in files: every form and field of SPEC 6.9, and what is said of bad ones."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest
import soundfile

from aromni_jax.errors import UserError
from aromni_jax.tasks import Image, Speech, Text
from aromni_jax.tasks.dialog_files import FIELDS, UserTurn, read_dialogs, user_parts
from aromni_jax.tasks.synthesis import Voice
from tests.tasks.toys import V, toy_assistant

A, B = {"text": "a"}, {"text": "b"}
BASE = pathlib.Path("base")


@pytest.fixture(scope="module")
def assistant():
    return toy_assistant()


def seen(tmp_path, text, name="d.json"):
    (tmp_path / name).write_text(text)
    turns = read_dialogs(tmp_path / name)
    return [(turn.dialog_id, turn.number, turn.value, turn.fresh) for turn in turns]


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_forms(tmp_path, name):
    one = [("x", 1, A, True), ("x", 2, B, False)]
    assert seen(tmp_path, json.dumps({"dialog_id": "x", "turns": [A, B]}), name) == one
    alone = [("dialog_0000", 1, A, True), ("dialog_0000", 2, B, False)]
    assert seen(tmp_path, json.dumps([A, B]), name) == alone
    assert seen(tmp_path, json.dumps(A) + "\n\n" + json.dumps(B), name) == alone
    assert seen(tmp_path, json.dumps(A), name) == alone[:1]
    two = [("dialog_0000", 1, A, True), ("7", 1, B, True), ("dialog_0002", 1, A, True)]
    rows = [{"turns": [A]}, {"dialog_id": 7, "turns": [B]}, {"turns": [A]}]
    assert seen(tmp_path, json.dumps(rows), name) == two
    assert seen(tmp_path, "\n".join(map(json.dumps, rows)), name) == two


def test_where_history_begins(tmp_path):
    other, reset = {"text": "c", "dialog_id": "y"}, {"text": "d", "reset": True}
    dialogs = [{"dialog_id": "x", "turns": [A, other, B, reset, B]}, {"dialog_id": "x", "turns": [A]}]
    turns = seen(tmp_path, json.dumps(dialogs))
    assert [(turn[0], turn[3]) for turn in turns] == [
        ("x", True), ("y", True), ("x", True), ("x", True), ("x", False), ("x", True),
    ]  # fmt: skip


def test_a_dialogs_own_voice(tmp_path):
    dialog = {"speaker_wav": "v.wav", "prompt_text": "p", "turns": [A, {**B, "prompt_text": "q"}]}
    values = [value for _, _, value, _ in seen(tmp_path, json.dumps(dialog))]
    assert values == [
        {**A, "speaker_wav": "v.wav", "prompt_text": "p"},
        {**B, "speaker_wav": "v.wav", "prompt_text": "q"},
    ]


def test_what_is_wrong_stands_in_its_place(tmp_path):
    lines = [json.dumps({"turns": [A, 3]}), "{", json.dumps({"turns": 3}), json.dumps(B), json.dumps({"turns": [B]})]
    turns = seen(tmp_path, "\n".join(lines), "d.jsonl")
    assert [turn[0] for turn in turns] == ["dialog_0000"] * 2 + [f"dialog_000{n}" for n in (1, 2, 3, 4)]
    assert (turns[0][2], turns[1][2], turns[5][2]) == (A, 3, B)
    messages = [str(turns[at][2]) for at in (2, 3, 4)]
    assert messages[0].startswith("line 2: not JSON") and "turns must be a list, got 3" in messages[1]
    assert "dialog 3: turns must be a list, got None" in messages[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[]", "no turn"),
        ('{"turns": []}', "no turn"),
        ("[\n{},\n", "not JSON"),
    ],
)
def test_files_of_no_use(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        seen(tmp_path, text)
    assert str(tmp_path / "d.json") in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_dialogs(tmp_path / "none.json")


def test_fields():
    value = {
        "text": " a ", "wav_path": "w.wav", "image_paths": ["i.png"], "user_append_text": "", "speaker_wav": "s.wav",
        "prompt_text": "p", "silence_head_sec": 1, "silence_tail_sec": 0.5, "silence_head_tokens": [9],
        "silence_tail_tokens": [8, 9], "reset": True, "dialog_id": "x", "audio_path": "v.wav",
    }  # fmt: skip
    assert {*value} == {*FIELDS}
    turn = UserTurn.parse(value, BASE)
    assert turn == UserTurn(
        "a", BASE / "w.wav", (BASE / "i.png",), "", Voice(BASE / "s.wav", "p"), 1.0, 0.5, (9,), (8, 9)
    )
    assert UserTurn.parse({"audio_path": "/v.wav", "text": "", "image_paths": None}, BASE) == UserTurn(
        wav_path=pathlib.Path("/v.wav")
    )
    said = turn.said("default", "hibari")
    assert list(said) == ["text", "wav_path", "image_paths", "user_append_text", "tts"]
    assert said["user_append_text"] == "" and said["tts"] == {
        "speaker_wav": "base/s.wav", "prompt_text": "p", "silence_head_sec": 1.0, "silence_tail_sec": 0.5,
        "silence_head_tokens": [9], "silence_tail_tokens": [8, 9], "synthesiser": "hibari",
    }  # fmt: skip
    assert UserTurn(text="a").said("default", "none")["user_append_text"] == "default"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "a turn is an object, got 3"),
        ({}, "needs text or wav_path"),
        ({"text": "  "}, "needs text or wav_path"),
        ({"image_paths": ["a.png"]}, "needs text or wav_path"),
        ({"wavpath": "a.wav"}, "did you mean 'wav_path'"),
        ({"zzz": 1}, "unknown field 'zzz'; known: "),
        ({"text": 5}, "text must be a text, got 5"),
        ({"text": "a", "image_paths": "b.png"}, "image_paths must be a list of paths"),
        ({"text": "a", "silence_head_sec": -1}, "silence_head_sec must be seconds between 0 and 60, got -1"),
        ({"text": "a", "silence_tail_sec": True}, "silence_tail_sec must be seconds"),
        ({"text": "a", "silence_tail_tokens": ["x"]}, "silence_tail_tokens must be a list of token ids"),
        ({"text": "a", "silence_tail_tokens": [2**99]}, "silence_tail_tokens must be a list of token ids"),
    ],
)
def test_bad_turns(value, message):
    with pytest.raises(UserError, match=message) as caught:
        UserTurn.parse(value, BASE)
    assert "\n" not in str(caught.value)


def test_parts(assistant, tmp_path):
    """The toy codec gives one code per 4 samples at 160 Hz: 8 samples are 0.05 s."""
    soundfile.write(tmp_path / "w.wav", np.full(8, 0.9), 160)
    PIL.Image.fromarray(np.full((2, 2), 80, np.uint8)).save(tmp_path / "i.png")
    heard, shown = Speech([1, 1]), Image([2, 2, 2, 2])

    def parts(synthesiser=None, **value):
        return user_parts(assistant, UserTurn.parse(value, tmp_path), synthesiser)

    class Speak:
        takes_voices = True

        def __call__(self, text, voice):
            return np.ones(4 * len(text)), 160

    assert parts(wav_path="w.wav", image_paths=["i.png"]) == [shown, heard]
    assert parts(text="abc", wav_path="w.wav", image_paths=["i.png"]) == [shown, Text("abc")]
    assert parts(Speak(), text="abc", image_paths=["i.png"]) == [shown, Speech([1, 1, 1])]
    assert parts(Speak(), wav_path="w.wav") == [heard], "a recording needs none"
    silent = parts(wav_path="w.wav", silence_head_sec=0.075, silence_tail_sec=0.02)
    assert silent == [Speech([0, 0, 0, 1, 1, 0])]
    ids = V.speech_ids([5, 6]).tolist()
    chosen = parts(Speak(), text="a", silence_head_tokens=ids, silence_head_sec=9, silence_tail_tokens=[])
    assert chosen == [Speech([5, 6, 1])]
    with pytest.raises(UserError, match="speech"):
        parts(wav_path="w.wav", silence_head_tokens=[V.bos])
    with pytest.raises(UserError, match=r"none\.wav does not exist"):
        parts(wav_path="none.wav")
