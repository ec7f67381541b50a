"""Many inputs into a folder: bad ones named, the others done, and going on where it stopped."""

import dataclasses
import itertools
import json
import os

import numpy as np
import PIL.Image
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.decoding import Policy, State
from aromni_jax.errors import UserError
from aromni_jax.tasks import Options, batch
from aromni_jax.tasks.batch import RESULT, Item, Job, _each, generate_into, read_items
from tests.tasks.toys import toy_assistant

SHORT = Options({State.SPEECH: Policy(temperature=2.0)}, max_text=6, max_speech=10)
SAY = Job("text_to_speech", "text", SHORT)


@pytest.fixture(scope="module")
def assistant():
    return toy_assistant()


def items(*texts):
    return [Item(text, text) for text in texts]


def run(assistant, folder, job, given, most=None):
    """Records, and the ids of those made now; interrupted after `most`."""
    made = []

    def done(row, kept):
        if not kept:
            made.append(row["id"])
            if len(made) == most:
                raise KeyboardInterrupt

    return generate_into(folder, assistant, job, given, {}, done), sorted(made)


def sounds(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.wav")}


def test_an_interrupted_call_goes_on(assistant, tmp_path):
    texts = items(*"abcdef")
    records, made = run(assistant, tmp_path / "whole", SAY, texts)
    assert made == list("abcdef") and len(sounds(tmp_path / "whole")) == 6
    assert [row["id"] for row in records] == list("abcdef")
    with pytest.raises(KeyboardInterrupt):
        run(assistant, tmp_path / "parts", SAY, texts, most=4)
    done = [row["id"] for row in json.loads((tmp_path / "parts" / RESULT).read_text())["results"]]
    assert len(done) == 4 and done == sorted(done)
    again, made = run(assistant, tmp_path / "parts", SAY, texts)
    assert made == sorted({*"abcdef"} - {*done})
    assert sounds(tmp_path / "parts") == sounds(tmp_path / "whole"), "draws do not shift"
    assert [row["files"] for row in again] == [row["files"] for row in records]


def test_a_long_answer_keeps_nobody_waiting(assistant, tmp_path, monkeypatch):
    """Inputs are read when there is room for one, four at a time; answers are told as they end."""
    order, parts = [], batch._parts
    monkeypatch.setattr(batch, "_parts", lambda a, k, read: order.append([i.id for i in read]) or parts(a, k, read))
    texts = [*"abcdefghijkl"]
    long = dataclasses.replace(SAY, options=dataclasses.replace(SHORT, max_speech=60))
    generate_into(tmp_path, assistant, long, items(*texts), {}, lambda row, kept: order.append(row["id"]))
    assert [what for what in order if isinstance(what, list)] == [texts[:4], texts[4:8], texts[8:]]
    told = [what for what in order if isinstance(what, str)]
    assert sorted(told) == texts != told
    assert 0 < order.index(texts[4:8]) - 1 < 4, "the next ones are not kept waiting for all of the first"


def test_what_has_changed_is_made_anew(assistant, tmp_path):
    texts = items("a", "b")
    run(assistant, tmp_path, SAY, texts)
    assert run(assistant, tmp_path, SAY, texts)[1] == []
    (tmp_path / "0001_b.wav").unlink()
    assert run(assistant, tmp_path, SAY, texts)[1] == ["b"]
    assert run(assistant, tmp_path, SAY, items("a", "c"))[1] == ["c"]
    assert run(assistant, tmp_path, dataclasses.replace(SAY, instruction="sing"), items("a", "c"))[1] == ["a", "c"]
    assert run(toy_assistant(template="aromni"), tmp_path, SAY, items("a", "c"))[1] == ["a", "c"]
    for broken in ("{", "[]", '{"results": [3]}', '{"results": [{"key": "x"}]}'):
        (tmp_path / RESULT).write_text(broken)
        assert run(assistant, tmp_path, SAY, texts)[1] == ["a", "b"]


def test_a_changed_file_is_read_again(assistant, tmp_path):
    path = tmp_path / "p.png"
    PIL.Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)
    show = Job("image_caption", "image", SHORT)
    given = read_items([str(path)], "image")
    assert run(assistant, tmp_path / "out", show, given)[1] == ["p"]
    assert run(assistant, tmp_path / "out", show, given)[1] == []
    os.utime(path, ns=(0, 0))
    assert run(assistant, tmp_path / "out", show, given)[1] == ["p"]


def test_bad_items_are_named(assistant, tmp_path):
    """A context of 256: the long text has no room. A name may be what UTF-8 cannot hold."""
    given = [*items("a", "b" * 300, " "), Item("list, line 4, \ud800", "", "not JSON"), *items("c")]
    records, _ = run(assistant, tmp_path, SAY, given)
    assert ["error" in row for row in records] == [False, True, True, True, False]
    assert "tokens, the context only 256" in records[1]["error"]
    assert [records[at]["error"] for at in (2, 3)] == ["the text is empty", "not JSON"]
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["results"] == records
    assert run(assistant, tmp_path, SAY, given)[1] == sorted(given[at].id for at in (1, 2, 3)), (
        "bad ones are tried again"
    )


def test_room_and_sound(assistant, tmp_path):
    """Too little room for a picture, a sound file without samples."""
    draw = Job("text_to_image", "text", dataclasses.replace(SHORT, max_new_tokens=5))
    records, _ = run(assistant, tmp_path, draw, items("a"))
    assert "begins with image needs room for 7 tokens, but max_new_tokens is 5" in records[0]["error"]
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 160)
    soundfile.write(tmp_path / "good.wav", np.zeros(9), 160)
    hear = Job("speech_to_text", "audio", SHORT)
    given = read_items([str(tmp_path / name) for name in ("empty.wav", "good.wav")], "audio")
    records, _ = run(assistant, tmp_path, hear, given)
    assert "holds no samples" in records[0]["error"] and "error" not in records[1]


def test_lists(tmp_path):
    (tmp_path / "t.txt").write_text("one\n\n two \n")
    lines = [
        '{"audio": "a.wav", "id": "5\u2028"}',
        "{",
        "",
        '{"audo": "b.wav"}',
        '{"audio": "c.wav", "idd": 1}',
        "3",
        "1" * 5000,
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    assert read_items([str(tmp_path / "t.txt"), "three"], "text") == items("one", "two", "three")
    listed = read_items([str(tmp_path / "l.jsonl"), "x/d.wav"], "audio")
    assert (listed[0], listed[-1]) == (Item("5\u2028", str(tmp_path / "a.wav")), Item("d", "x/d.wav"))
    where = f"{tmp_path / 'l.jsonl'}, line "
    assert [(item.id.removeprefix(where), item.error.split(":")[0].split(" (")[0]) for item in listed[1:-1]] == [
        ("2", "not JSON"),
        ("4", 'expected an object with a string "audio"'),
        ("5", "unknown field 'idd'; known are audio and id"),
        ("6", 'expected an object with a string "audio"'),
        ("7", "not JSON"),
    ]
    for bad, message in (("none.jsonl", "no such file"), ("", "it is empty")):
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(UserError, match=message):
            read_items([str(tmp_path / (bad or "empty.txt"))], "text")


@given(st.lists(st.booleans(), max_size=12))
def test_the_bad_ones_are_found_by_halving(bad):
    calls = []

    def double(values):
        if any(bad[value] for value in values):
            raise UserError(f"{next(filter(bad.__getitem__, values))} is bad")
        calls.append(list(values))
        return [2 * value for value in values]

    results = _each(double, range(len(bad)))
    assert [str(row) if isinstance(row, UserError) else row for row in results] == [
        f"{at} is bad" if is_bad else 2 * at for at, is_bad in enumerate(bad)
    ]
    assert sorted(itertools.chain(*calls)) == [at for at, is_bad in enumerate(bad) if not is_bad], (
        "each good one is done once"
    )
