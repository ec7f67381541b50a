"""A preparation that is killed goes on, and gives the bytes of one that was not; done again, it does nothing."""

import pathlib
import signal
import subprocess
import sys
from unittest import mock

import pytest

from aromni_jax.cli.main import main
from aromni_jax.codecs import TextCodec
from aromni_jax.data import read_records
from aromni_jax.errors import UserError
from aromni_jax.prepare import beam_shards, corpus, prepare_corpus
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.sources import open_source
from tests.prepare import corpora

OPTIONS = {
    "codecs": corpora.CODECS,
    "sequence_length": 256,
    "held_out_every": 4,
    "progress": False,
    "items_per_shard": 5,
}

# The records of all shards are 24; then each is written once more, before the rows.
KILLED = f"""
import os, signal, sys
from aromni_jax.data.files import RecordWriter
place, out, last = sys.argv[1:]
written, write = 0, RecordWriter.write
def counted(self, data):
    global written
    written += 1
    if written == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, data)
RecordWriter.write = counted
from aromni_jax.prepare import prepare_corpus
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.sources import open_source
prepare_corpus(open_source(place, Columns()), out, **{OPTIONS!r})
"""


def killed_at(write, place, out):
    """The preparation in a process that dies at its so many-th write."""
    child = subprocess.run([sys.executable, "-c", KILLED, str(place), str(out), str(write)], timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_in_a_shard_and_while_packing(folder_set, tmp_path, monkeypatch):
    expected, _, place = folder_set
    out, work = tmp_path / "data", tmp_path / ".data.shards"
    killed_at(15, place, out)
    done = {path.name: path.stat().st_mtime_ns for path in work.glob("[0-9]*")}
    assert 0 < len(done) < 3 and not out.exists()
    assert [path for path in work.glob(".*") if path.is_dir()]  # what it was at
    killed_at(14 + 20, place, out)
    now = {path.name: path.stat().st_mtime_ns for path in work.glob("[0-9]*")}
    assert len(now) == 3 and now.items() >= done.items() and not out.exists()
    monkeypatch.setattr(corpus, "run_pipeline", spied := mock.Mock(wraps=corpus.run_pipeline))
    monkeypatch.setattr(beam_shards, "make_shard", lambda *_: pytest.fail("all shards are done"))
    prepare_corpus(open_source(str(place), Columns()), out, **OPTIONS)
    assert spied.called and contents(out) == contents(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_done_again_it_does_nothing(folder_set, monkeypatch):
    out, _, place = folder_set
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(corpus, "run_pipeline", lambda *_: pytest.fail("there is nothing to do"))
    prepare_corpus(open_source(str(place), Columns()), out, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_other_data_is_another_data_set(folder_set, tmp_path):
    out, _, _ = folder_set
    other = corpora.side_by_side(tmp_path / "media")
    with pytest.raises(UserError, match=r"holds another data set \(source: .*--force"):
        prepare_corpus(open_source(str(other), Columns()), out, **OPTIONS)


def test_shards_of_other_data_are_thrown_away(tmp_path, monkeypatch):
    place, out, work = corpora.side_by_side(tmp_path / "media"), tmp_path / "data", tmp_path / ".data.shards"
    made, make_shard = [], corpus.make_shard

    def stopped(job, tokeniser, number, offset):
        if made:
            raise UserError("stopped")
        made.append(number)
        make_shard(job, tokeniser, number, offset)

    monkeypatch.setattr(beam_shards, "make_shard", stopped)
    with pytest.raises(UserError, match="stopped"):
        prepare_corpus(open_source(str(place), Columns()), out, **OPTIONS)
    monkeypatch.undo()
    assert [path.name for path in work.glob("[0-9]*")] == [f"{made[0]:06d}"]
    for path in place.glob("*/*.txt"):
        path.write_text("said otherwise")
    manifest = prepare_corpus(open_source(str(place), Columns()), out, **OPTIONS)
    texts = set()
    for part in manifest.splits["train"].values():
        for record in read_records(out / part.records, manifest.vocabulary):
            v, tokens = manifest.vocabulary, record.tokens.astype(int)
            texts.add(TextCodec.load("numbers").decode(v.text_pieces(tokens[v.text.mask(tokens)]).tolist()))
    assert all("said otherwise" in text for text in texts - {""}) and not work.exists()


def test_without_beam_it_says_what_to_install(folder_set, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    words = ["prepare", str(folder_set[2]), "--codecs", "numbers", "--out", str(tmp_path / "data")]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install 'aromni_jax[beam]'" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{media}"], "which codecs? Give --codecs a folder"),
        (["{media}", "--codecs", "text=numbers"], "give one place, or text=PATH image=PATH speech=PATH"),
        (["{media}", "--codecs", "numbers", "--tasks", "chat"], "no task 'chat' is made of media"),
        (["{media}", "--codecs", "numbers", "--columns", "caption"], "--columns caption: write it as text=NAME"),
        (["{media}", "--codecs", "numbers", "--beam", "--runner=Nowhere"], "Nowhere"),
        (
            ["{media}", "--codecs", "numbers", "--beam", "--direct_num_workers", "few"],
            "--direct_num_workers: invalid int",
        ),
        (["{media}", "--codecs", "numbers", "--seed", "-1"], "seed -1: give 0 or more"),
        (["{media}", "--codecs", "numbers", "--sequence-length", "0"], "sequence length 0"),
        (["{media}", "--codecs", "numbers", "--out", "{media}/data"], "/data lies in"),
        (["{media}", "--codecs", "numbers", "--out", "."], "cannot be . itself"),
        (["numbers", "--mixture", "chat=inf"], "the share of chat is inf"),
        (["numbers", "--seed", "-1"], "seed -1: give 0 or more"),
        (["{media}/png/0.png", "--codecs", "numbers"], "0.png: unknown format; give a folder of pictures"),
        (["{empty}", "--codecs", "numbers"], "no picture, no sound and no text file"),
        (["tfds:nothing", "--codecs", "numbers"], "no prepared data set nothing below"),
        (["{empty}/x.parquet"], "cannot read"),
        (
            ["{empty}/x.jsonl"],
            "no columns discrete_code and task, or input_ids and labels, or text, image or audio; it has a",
        ),
        (
            ["{empty}/y.jsonl", "--codecs", "numbers", "--columns", "text=words"],
            "y.jsonl: no column words; it has text",
        ),
    ],
)
def test_errors_are_one_line(folder_set, tmp_path, capsys, words, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    if any("x." in word or "y." in word for word in words):
        (empty / "x.parquet").write_text("junk")
        (empty / "x.jsonl").write_text('{"a": 1}\n')
        (empty / "y.jsonl").write_text('{"text": "a"}\n')
    words = [word.format(media=folder_set[2], empty=empty) for word in words]
    out = tmp_path / "out" / "data"
    # Before --beam, which takes all that follows.
    assert main(["prepare", words[0], "--out", str(out), *words[1:]]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not pathlib.Path(out).exists()
