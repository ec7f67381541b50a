"""Names and contents of the files of a turn (SPEC 6.9)."""

import json
import re

import numpy as np
import PIL.Image
import pytest
import soundfile

from aromni_jax.decoding import Result
from aromni_jax.decoding.request import Usage
from aromni_jax.errors import UserError
from aromni_jax.tasks import Dropped, Image, Reply, Speech, Text, read_answer, reply_files
from aromni_jax.tasks.reply_files import file_name, write_turn
from tests.tasks.toys import Letters, V, toy_assistant


@pytest.fixture(scope="module")
def assistant():
    return toy_assistant()


def reply(assistant, *parts, dropped=(0, 0)):
    tokens = np.array(assistant.prompts.answer("chat", parts), np.int32)
    sound = any(isinstance(part, Speech) for part in parts)
    usage = Usage(
        prompt_tokens=9, reused_tokens=2, new_tokens=len(tokens), first_token=0.1, total=0.2,
        first_speech=0.1 if sound else None, first_audio=0.15 if sound else None, seconds_of_sound=0.8 * sound,
    )  # fmt: skip
    result = Result("0", tokens, np.zeros(len(tokens), np.int8), "stop", usage)
    return Reply([V.bos], result, read_answer(tokens.tolist(), V, Letters()), Dropped(*dropped))


WHOLE = [Text("what"), Text("that"), Speech([0, 1]), Image([0, 1, 2, 3])]


def test_the_layout(assistant, tmp_path):
    said = {"text": "hi"}
    metas = [write_turn(assistant, reply(assistant, *WHOLE), tmp_path, "d", said, tokens) for tokens in (True, False)]
    for index, meta in enumerate(metas, 1):
        uid = meta["run_uid"]
        folder = tmp_path / "d" / f"turn_{index:04d}_{uid}"
        names = sorted(path.name for path in folder.iterdir())
        assert re.fullmatch("[0-9a-f]{8}", uid)
        patterns = [rf"{uid}_seg2_audio_[0-9a-f]{{8}}\.wav", rf"{uid}_seg3_img1_[0-9a-f]{{8}}\.png", "decoded_text.txt"]
        patterns += ["meta.json"] + ["output_tokens.json"] * (index == 1)
        assert len(names) == len(patterns) and all(map(re.fullmatch, sorted(patterns, key=len), sorted(names, key=len)))
        assert meta["decoded_text_file"] == str(folder / "decoded_text.txt")
        assert (folder / "decoded_text.txt").read_text() == "what that\n"
        assert json.loads((folder / "meta.json").read_text()) == meta
        assert list(meta)[:4] == ["dialog_id", "turn_index", "run_uid", "text"]
        assert meta["usage"]["first_audio_seconds"] == 0.15 and meta["usage"]["real_time_factor"] == 0.25
        (audio,), (image,) = meta["saved_audios"], meta["saved_images"]
        np.testing.assert_array_equal(soundfile.read(audio, dtype="int16")[0], [0] * 4 + [32767] * 4)
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(image)), [[0, 40], [80, 120]])
    tokens = json.loads(next((tmp_path / "d").glob("turn_0001_*/output_tokens.json")).read_text())
    assert tokens == assistant.prompts.answer("chat", WHOLE)


def test_a_reply_in_words_alone(assistant, tmp_path):
    meta = write_turn(assistant, reply(assistant, Text("a"), Text("b"), dropped=(2, 30)), tmp_path, "d", {}, False)
    assert (meta["saved_audios"], meta["saved_images"]) == ([], [])
    assert not {"first_speech_seconds", "first_audio_seconds", "real_time_factor"} & set(meta["usage"])
    assert (meta["transcript"], meta["reply"], meta["dropped"]) == ("a", "b", {"turns": 2, "tokens": 30})


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_turn_appears_whole_or_not_at_all(assistant, tmp_path, monkeypatch, error):
    def broken(path, value):
        raise error

    monkeypatch.setattr(reply_files, "write_json", broken)
    with pytest.raises((KeyboardInterrupt, UserError)):
        write_turn(assistant, reply(assistant, *WHOLE), tmp_path, "d", {}, False)
    assert list((tmp_path / "d").iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc", "a/../b", "..", "", "日" * 300, "/abs", "x\n"])
def test_names_stay_in_their_folder(name, tmp_path):
    made = tmp_path / file_name(name)
    made.mkdir()
    assert made.parent == tmp_path and made.name == made.name.strip("._")
