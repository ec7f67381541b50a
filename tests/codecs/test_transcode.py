"""Work on files: batches, what is skipped, what is named, and what an interruption leaves. The codec is a fake."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from aromni_jax.codecs import transcode
from aromni_jax.codecs.code_files import SUFFIX, read_codes
from aromni_jax.codecs.media_files import MediaFile
from aromni_jax.errors import UserError


class Fake:
    """Files of numbers; a code is a number. `log` has the batches."""

    kind, suffix, num_codes, room = "speech", ".wav", 1000, 12

    def __init__(self, fingerprint="0123"):
        self.fingerprint, self.log, self.facts = fingerprint, [], {}

    def read(self, file):
        if file.path.read_text() == "bad":
            raise UserError(f"cannot read {file.path}")
        return np.array(file.path.read_text().split(), np.int32)

    def cost(self, file):
        return int(file.seconds)

    def code_cost(self, record):
        return len(record.codes)

    def encode(self, rows):
        self.log.append([len(row) for row in rows])
        return list(rows)

    def check(self, record, where):
        if 13 in record.codes:
            raise UserError(f"{where}: unlucky")

    def decode(self, records):
        if records:
            self.log.append([len(record.codes) for record in records])
        return [record.codes for record in records]

    def shown(self, prepared):
        return prepared

    def samples(self, prepared):
        return len(prepared)

    def amount(self, media):
        return len(media)

    def distances(self, media, copy):
        return {"off": float(np.abs(media - copy).sum())}

    def write(self, path, media, mark):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mark)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Of 1 to 7 numbers, the last one bad."""
    monkeypatch.setattr(
        transcode, "read_comment", lambda path: Path(path).read_text() if Path(path).exists() else ""
    )  # a fake's files are no WAV
    found = []
    for size in (3, 1, 7, 6, 2, 5, 4):
        path = tmp_path / "in" / f"{size}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(map(str, range(size))) if size != 4 else "bad")
        found.append(MediaFile(path, f"deep/{path.name}", "speech", size, changed=10**18))
    return found


def later(file, nanoseconds=10**9):
    """The file as it is found after a change."""
    return dataclasses.replace(file, changed=file.changed + nanoseconds)


def bar(total, what):
    return contextlib.nullcontext(type("Bar", (), {"update": lambda self, count: None})())


def count():
    return transcode.Count(lambda line: None)


def encode(files, codec, out):
    done = count()
    transcode.encode_files(files, {"speech": codec}, out, bar, done)
    return done


def test_batches_are_bounded_and_of_about_one_length(files, tmp_path):
    codec, out = Fake(), tmp_path / "out"
    done = encode(files, codec, out)
    assert codec.log == [[7], [6, 5], [3, 2], [1]]  # a room of 12: the bad one, of 4, was with 3 and 2
    assert (done.made, done.kept, done.reasons) == (6, 0, [f"cannot read {files[-1].path}"])
    ((_, record),) = read_codes(out / "deep" / f"3.txt{SUFFIX}")
    assert record.codes.tolist() == [0, 1, 2] and (record.source, record.samples) == ("deep/3.txt", 3)
    assert len(list(out.rglob("*.*"))) == 6


def test_what_is_there_is_made_anew_only_by_another_codec_or_of_a_changed_file(files, tmp_path):
    out = tmp_path / "out"
    encode(files, Fake(), out)
    codec = Fake()
    assert encode(files, codec, out).kept == 6 and not codec.log
    (out / "deep" / f"7.txt{SUFFIX}").write_text("{}")
    encode([later(files[0]), later(files[1], -(10**9)), *files[2:]], codec, out)
    assert sorted(codec.log) == [[3, 1], [7]], "also one that is older now: it may be another file of that name"
    other = Fake("4567")
    assert encode(files, other, out).made == 6


def test_an_interruption_leaves_whole_files_and_the_rest_is_done_later(files, tmp_path, monkeypatch):
    out, codec, own = tmp_path / "out", Fake(), Fake.encode

    def interrupted(self, rows):
        if self.log:
            raise KeyboardInterrupt
        return own(self, rows)

    monkeypatch.setattr(Fake, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(files, codec, out)
    assert [path.name for path in (out / "deep").iterdir()] == [f"7.txt{SUFFIX}"]
    monkeypatch.undo()
    again = Fake()
    done = encode(files, again, out)
    assert (done.made, done.kept) == (5, 1) and [7] not in again.log


def decode(paths, codec, out):
    done = count()
    transcode.decode_records(transcode.read_records(paths, done), {"speech": codec}, out, bar, done)
    return done


def test_decoding(files, tmp_path):
    encode(files, Fake(), tmp_path / "codes")
    paths, out, codec = sorted((tmp_path / "codes" / "deep").iterdir()), tmp_path / "out", Fake()
    files[0].path.write_text("13 0 0")
    encode([later(files[0]), *files[1:]], Fake(), tmp_path / "codes")
    (tmp_path / "broken").write_text("{")
    done = decode([*paths, tmp_path / "broken"], codec, out)
    assert codec.log == [[7], [6, 5], [2, 1]] and done.made == 5
    assert "broken, line 1: not a record" in done.reasons[0] and done.reasons[1].endswith(
        "3.txt.codes.jsonl, line 1: unlucky"
    )
    assert sorted(path.name for path in (out / "deep").iterdir()) == ["1.wav", "2.wav", "5.wav", "6.wav", "7.wav"]
    assert decode(paths, Fake(), out).kept == 5
    with pytest.raises(UserError, match="made by codec 0123, and --codec is 4567"):
        decode(paths, Fake("4567"), out)
    with pytest.raises(UserError, match="would both be written to"):
        decode([paths[0], paths[0]], codec, out)


def test_decoding_replaces_nothing_that_it_did_not_make(files, tmp_path):
    encode(files[:1], Fake(), tmp_path / "codes")
    original = tmp_path / "out" / "deep" / "3.wav"
    original.parent.mkdir(parents=True)
    original.write_text("the only recording")
    with pytest.raises(UserError, match=r"3\.wav is there, and no decoding made it"):
        decode([tmp_path / "codes" / "deep" / f"3.txt{SUFFIX}"], Fake(), tmp_path / "out")
    with pytest.raises(UserError, match=r"3\.wav is there, and no decoding made it"):
        transcode.round_trip_files(files[:1], {"speech": Fake()}, tmp_path / "out", bar, count())
    assert original.read_text() == "the only recording"


def test_marks_of_other_codes_are_not_taken_for_ones_own(files, tmp_path):
    encode(files[:1], Fake(), tmp_path / "codes")
    path = tmp_path / "codes" / "deep" / f"3.txt{SUFFIX}"
    assert decode([path], Fake(), tmp_path / "out").made == 1
    path.write_text(path.read_text().replace("[0, 1, 2]", "[0, 1, 5]"))
    assert decode([path], Fake(), tmp_path / "out").made == 1


def test_round_trips_go_on_and_their_figures_cover_all(files, tmp_path):
    out, codec = tmp_path / "out", Fake()

    def go(some):
        done = count()
        return done, transcode.round_trip_files(some, {"speech": codec}, out, bar, done)["speech"]

    go(files[:2])
    done, figures = go(files)
    assert (done.made, done.kept, done.failed) == (4, 2, 1)
    assert figures["files"] == 6 and figures["codes_used"] == 7 and figures["off"] == 0
    assert figures["items"][0] == {"source": "deep/3.txt", "copy": "deep/3.wav", "off": 0}
    (out / "deep" / "3.wav").unlink()
    assert go(files)[0].made == 1


def test_results_never_fall_together_or_on_an_input(files, tmp_path):
    twin = MediaFile(files[0].path.with_suffix(".mp3"), "deep/3.mp3", "speech", 1)
    with pytest.raises(UserError, match=r"3\.txt and .*3\.mp3 would both be written to"):
        transcode.round_trip_files([files[0], twin], {"speech": Fake()}, tmp_path / "out", bar, count())
    own = MediaFile(tmp_path / "a.wav", "a.wav", "speech", 1)
    with pytest.raises(UserError, match="would replace the input"):
        transcode.round_trip_files([own], {"speech": Fake()}, tmp_path, bar, count())
