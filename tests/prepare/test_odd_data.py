"""What nobody should have written, and somebody has: it is told, record by record, and the rest is read."""

import csv
import io
import json
import os
import pathlib
import tarfile

import numpy as np
import pytest

from aromni_jax.codecs import TextCodec
from aromni_jax.data.record import Record
from aromni_jax.errors import UserError
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.examples import TASKS_MADE, ExampleBuilder, Recipe
from aromni_jax.prepare.items import Item, Reject, Stream, Wave
from aromni_jax.prepare.sources import open_source
from aromni_jax.prepare.tokenising import Tokeniser
from aromni_jax.vocabulary import JointVocabulary
from tests.prepare import corpora

V = JointVocabulary.aromni()


def given(place):
    """All that a place holds, as the workers see it."""
    source = open_source(str(place), Columns())
    assert source.state() == source.state()
    return [item for part, _ in source.parts(100) for item in source.items(json.loads(json.dumps(part)))]


def names(items):
    """Records that can be used, and reasons by record of the others."""
    told = {item.record: item.reason for item in items if isinstance(item, Reject)}
    return [item.record for item in items if not isinstance(item, Reject)], told


def as_lines(place, rows):
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "here.txt").write_text("one")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert names(given(tmp_path)) == (["here"], {"gone": "bad text"})


def test_folders_that_are_linked_in(tmp_path):
    """Each once: those that lie elsewhere, under the name of the link; and none through a link that leads back."""
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    for folder in (tree / "real", tree / ".hidden", elsewhere / "below"):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("one")
    (tree / "real" / "linked").symlink_to(elsewhere)
    (tree / "shown").symlink_to(".hidden")
    for name, target in (("again", "real"), ("up", ".."), ("itself", "."), ("twice", "real/linked/below")):
        (tree / name).symlink_to(target)
    (elsewhere / "back").symlink_to(tree)
    (elsewhere / "round").symlink_to(elsewhere)
    expected = ["real/a", "shown/a", "twice/a"]
    assert names(given(tree)) == (expected, {})
    source = open_source(str(tree), Columns())
    before = source.state()
    (elsewhere / "below" / "b.txt").write_text("two")
    assert source.state() != before and names(given(tree))[0] == [*expected, "twice/b"]


def test_linked_folders_of_files(tmp_path):
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    for folder in (tree / "real", elsewhere):
        folder.mkdir(parents=True)
        as_lines(folder / "rows.jsonl", [{"text": folder.name}])
    for name, target in (("again", "real"), ("up", ".."), ("itself", "."), ("linked", elsewhere)):
        (tree / name).symlink_to(target)
    as_lines(tmp_path / "beside.jsonl", [{"text": "not meant"}])
    assert [text for item in given(tree) for text in item.texts] == ["elsewhere", "real"]


def test_a_tree_deeper_than_python_calls_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    file = pathlib.Path("a.txt")
    file.write_text("one")
    try:
        assert names(given(tmp_path)) == (["d/" * 1100 + "a"], {})
    finally:  # pytest could not remove it
        file.unlink()
        for _ in range(1100):
            os.chdir("..")
            os.rmdir("d")


def test_links_that_lead_nowhere_are_counted(tmp_path):
    (tmp_path / "here.txt").write_text("one")
    for name in ("folder", "84-1.trans.txt", "round"):
        (tmp_path / name).symlink_to(name if name == "round" else tmp_path / "nowhere")
    used, told = names(given(tmp_path))
    assert used == ["here"] and told == dict.fromkeys(("folder", "84-1.trans.txt", "round"), "dead link")


def test_a_hidden_folder_is_no_split(tmp_path):
    (tmp_path / ".test").mkdir()
    (tmp_path / "a.txt").write_text("one")
    assert not open_source(str(tmp_path), Columns()).has_split


def test_bad_lines_of_metadata(tmp_path):
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": 5}, {"file_name": ".", "text": "x"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "[" * 100_000)
    used, told = names(given(tmp_path))
    assert used == ["a", "."] and set(told) == {"metadata.jsonl:2", "metadata.jsonl:4"}


def test_a_quote_that_is_not_closed(tmp_path):
    limit = "x" * csv.field_size_limit()
    (tmp_path / "metadata.csv").write_text(f'file_name,text\na.png,"one\nb.png,two\n{limit}')
    with pytest.raises(UserError, match=r"metadata.csv, line \d+: .*quote"):
        given(tmp_path)


def test_values_of_other_types(tmp_path):
    audio = {"array": [[0.5, 0.5], [0.1, 0.1], [0.2, 0.2]], "sampling_rate": 16_000}
    cells = [("image", {"bytes": "no bytes"}), ("image", {"path": 5}), ("audio", {"array": ["x"], "sampling_rate": 1})]
    cells += [("audio", {"array": [[[0.5]]], "sampling_rate": 1})]
    rows = [{"audio": audio, "text": "ok"}, *({kind: cell, "text": "a"} for kind, cell in cells)]
    used, told = names(items := given(as_lines(tmp_path / "a.jsonl", rows)))
    assert used == ["line 1"] and set(told) == {f"line {2 + at}" for at in range(len(cells))}
    np.testing.assert_allclose(items[0].speech.wave, [0.5, 0.1, 0.2])


def test_lists_of_several_lengths(tmp_path):
    good = {"input_ids": [0, 5], "labels": [-100, 5]}
    rows = [good, {**good, "input_ids": [[1], [2, 3]]}, {**good, "labels": [[1], [2, 3]]}]
    assert names(given(as_lines(tmp_path / "a.jsonl", rows))) == (
        ["line 1"],
        {"line 2": "bad record", "line 3": "bad record"},
    )
    with pytest.raises(UserError, match="flat list of integers"):
        Record.checked([[1], [2, 3]], "text_to_text", 0, "", V, "tokens")


def test_paths_are_relative_to_the_folder_of_their_own_file(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        as_lines(tmp_path / name / "rows.jsonl", [{"image": "0.png", "text": name}])
    assert [item.image for item in given(tmp_path)] == [tmp_path / "a" / "0.png", tmp_path / "b" / "0.png"]


def test_an_empty_first_file_and_hidden_ones(tmp_path):
    (tmp_path / "0.jsonl").write_text("\n")
    as_lines(tmp_path / "1.jsonl", [{"text": "one"}])
    (tmp_path / "._1.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "2.jsonl").mkdir()
    assert names(given(tmp_path)) == (["line 1"], {})


def test_parquet_with_a_damaged_group_and_with_text_that_is_none(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.table({"text": [f"word {number}" for number in range(2000)]})
    pyarrow.parquet.write_table(texts, tmp_path / "a.parquet", compression=None, use_dictionary=False)
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    (tmp_path / "b.parquet").write_bytes(whole[:4] + b"\xff" * 56 + whole[60:])
    ends = pyarrow.py_buffer(np.array([0, 2, 4], np.int32).tobytes())
    bad = pyarrow.StringArray.from_buffers(2, ends, pyarrow.py_buffer(b"ok\xff\xfe"))
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "c.parquet")
    items = given(tmp_path)
    assert [item.reason for item in items if isinstance(item, Reject)] == ["unreadable Parquet"] * 2
    assert len(items) == 2002


def test_a_tar_of_a_mac(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, data in (("._0.png", b"?"), ("0.png", corpora.png(0)), ("._0.txt", b"?"), ("0.txt", b"one")):
            member = tarfile.TarInfo(f"d/{name}")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
        member = tarfile.TarInfo("d/1.json")
        member.size = 100_000
        file.addfile(member, io.BytesIO(b"[" * member.size))
    used, told = names(items := given(tmp_path))
    assert used == ["d/0"] and items[0].texts == ("one",) and told == {"d/1": "bad record"}


def builder(text=None):
    return ExampleBuilder(Recipe("aromni", TASKS_MADE, 64, 0, 0), V, text)


@pytest.mark.parametrize("name", ["\ud800", "é" * 70_000], ids=["no text", "long"])
def test_ids_that_no_record_takes(name):
    tokens = [V.bos, V.text.start + 5, V.eos]
    _, record = builder().of_stream(Stream("a.jsonl", "line 1", "train", tokens, "text_to_text", 0, id=name))
    assert Record.from_bytes(record.to_bytes()) == record


def test_a_plain_text_with_a_lone_surrogate_is_left_out():
    text = TextCodec.load("numbers")
    made = ExampleBuilder(
        Recipe("brief", TASKS_MADE, 64, 0, 0),
        JointVocabulary.compact(text_pieces=text.num_pieces, image_codes=8, image_tokens=4, speech_codes=8),
        text,
    ).of_item(Item("a.jsonl", "line 1", "train", ("\ud800", "one")), {})
    bad, (_, good) = made
    assert isinstance(bad, Reject) and good.task == "text_to_text"


def test_sound_without_a_rate():
    class Codec:
        sample_rate, hop = 16_000, 400

    item = Item("a.parquet", "row 0", "train", ("one",), None, Wave(np.ones(8, np.float32), 0))
    (made,) = Tokeniser(builder(), None, Codec()).examples(iter([item]), hold_first=False)
    assert made.reason == "bad sound"
