"""Files to codes, codes to files, and there and back: in batches of about one length, going on where it stopped.

Each result is written whole or not at all, a batch at a time. A result that is there, made by the same codec from what
is there now (codes bear the time of their source), is not made again. Files of a batch are read in threads while the
codec works on the batch before.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from aromni_jax.codecs import media_files, vq
from aromni_jax.codecs.code_files import MARK, SUFFIX, CodeRecord, read_codes, write_codes
from aromni_jax.codecs.file_codec import FileCodec
from aromni_jax.codecs.media import read_comment
from aromni_jax.codecs.media_files import Kind, MediaFile
from aromni_jax.errors import UserError

_THREADS = 4
_MOST_ROWS = 256
_SAME_TIME = 1_000_000  # nanoseconds: not every file system keeps them all
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Codecs = Mapping[Kind, FileCodec]
Bar = Callable[[int, str], AbstractContextManager[Any]]  # (how many, of what) -> has `update(count)`


@dataclasses.dataclass
class Count:
    """What became of the files.

    Attributes:
      say: gets what is wrong with each bad one, in a line; `reasons` keeps them.
      made, kept: now, and by an earlier call.
    """

    say: Callable[[str], object]
    made: int = 0
    kept: int = 0
    reasons: list[str] = dataclasses.field(default_factory=list)

    @property
    def failed(self) -> int:
        """Files, or lines of them, that are bad."""
        return len(self.reasons)

    def fail(self, error: UserError) -> None:
        """One is bad; the others go on."""
        self.reasons.append(str(error))
        self.say(str(error))


@dataclasses.dataclass(frozen=True, eq=False)
class RoundTrip:
    """A file, its codes and what they decode to.

    Attributes:
      record: with the distances in its `figures`.
      media, copy: the original as the codec takes it, and its reconstruction; see `FileCodec` for their types.
    """

    file: MediaFile
    record: CodeRecord
    media: np.ndarray
    copy: np.ndarray


class Clock:
    """Amount of media and seconds of the codec's work, by what was done.

    Attributes:
      whole: of all batches, compilation included. warm: of one batch, done once more.
    """

    def __init__(self) -> None:
        self.whole: dict[str, tuple[float, float]] = {}
        self.warm: dict[str, tuple[float, float]] = {}

    def time(self, name: str, amount: float, work: Callable[[], _Result]) -> _Result:
        """The result of `work` on so much."""
        started = time.perf_counter()
        result = work()
        before = self.whole.get(name, (0.0, 0.0))
        self.whole[name] = before[0] + amount, before[1] + time.perf_counter() - started
        if name not in self.warm:
            started = time.perf_counter()
            work()
            self.warm[name] = amount, time.perf_counter() - started
        return result


class Totals:
    """Means of figures and use of codes over many round trips."""

    def __init__(self, codec: FileCodec) -> None:
        self.codec = codec
        self.use_k = np.zeros(codec.num_codes, np.int64)
        self.figures: dict[str, list[float]] = {}
        self.files = 0

    def add(self, record: CodeRecord) -> None:
        """Count a round trip."""
        self.files += 1
        self.use_k += np.bincount(record.codes, minlength=len(self.use_k))
        for name, value in record.figures.items():
            self.figures.setdefault(name, []).append(value)

    def summary(self) -> dict[str, Any]:
        """For JSON: the codec, its rate, means of the figures, use of the codebook."""
        return {
            "fingerprint": self.codec.fingerprint,
            **self.codec.facts,
            "files": self.files,
            **{name: round(float(np.mean(values)), 4) for name, values in self.figures.items()},
            "codes": self.codec.num_codes,
            "codes_used": int((self.use_k > 0).sum()),
            "perplexity": round(vq.perplexity_of_use(self.use_k), 1) if self.files else 0.0,
        }


# -- the three ways -------------------------------------------------------------------------------------


def encode_files(files: Sequence[MediaFile], codecs: Codecs, out: Path, bar: Bar, count: Count) -> None:
    """One file of codes for each, `out`/name + SUFFIX.

    Raises UserError: two files with one output, or a disk that takes no more.
    """
    target = _targets(files, out, [file.name + SUFFIX for file in files])
    todo = [file for file in files if not _encoded(file, codecs[file.kind], target[file])]
    count.kept += len(files) - len(todo)
    for codec, batch in _media_batches(todo, codecs, bar, count):
        sources, prepared = zip(*batch, strict=True)
        records = _records(codec, sources, codec.encode(prepared), prepared)
        _in_threads(_write_codes, [target[file] for file in sources], records, sources)
        count.made += len(batch)


def read_records(paths: Sequence[Path], count: Count) -> list[tuple[str, CodeRecord]]:
    """(place, record) of all good lines of files of codes."""
    good = []
    for path in paths:
        try:
            for place, record in read_codes(path):
                if isinstance(record, UserError):
                    count.fail(record)
                else:
                    good.append((place, record))
        except UserError as error:
            count.fail(error)
    return good


def decode_records(
    records: Sequence[tuple[str, CodeRecord]], codecs: Codecs, out: Path, bar: Bar, count: Count
) -> None:
    """`out`/source with the suffix .png or .wav for each of the (place, record).

    Raises UserError: two records with one output, one that would replace a file of another origin, a record of another
    codec, a codec without a decoder.
    """
    for place, record in records:
        own = codecs[record.kind].fingerprint
        if record.codec != own:
            raise UserError(f"{place}: made by codec {record.codec}, and --codec is {own}: give the one that made it")
    for codec in codecs.values():
        codec.decode([])  # raises now what it would raise after the first batch
    target = [out / _media_name(record.source, codecs[record.kind]) for _, record in records]
    media_files.check_distinct([(place, path) for (place, _), path in zip(records, target, strict=True)], [])
    rows = [(place, record, path) for (place, record), path in zip(records, target, strict=True)]
    todo = [row for row in rows if read_comment(row[2]) != row[1].mark]
    _check_ours(path for *_, path in todo)
    count.kept += len(rows) - len(todo)
    for kind, codec in codecs.items():
        mine = [row for row in todo if row[1].kind == kind]
        costs = [codec.code_cost(record) for _, record, _ in mine]

        def checked(row: tuple[str, CodeRecord, Path], codec: FileCodec = codec) -> CodeRecord:
            codec.check(row[1], row[0])
            return row[1]

        for batch in _batches(mine, costs, codec.room, checked, bar, media_files.NAMES[kind], count):
            chosen = [record for _, record in batch]
            copies, paths = codec.decode(chosen), [path for (_, _, path), _ in batch]
            _in_threads(codec.write, paths, copies, [record.mark for record in chosen])
            count.made += len(batch)


def round_trip_files(
    files: Sequence[MediaFile], codecs: Codecs, out: Path, bar: Bar, count: Count
) -> dict[Kind, dict[str, Any]]:
    """The reconstruction of each below `out`, its codes beside it; returns all figures, for JSON.

    Raises UserError as `encode_files` and `decode_records`.
    """
    for codec in codecs.values():
        codec.decode([])
    copies = _targets(files, out, [_media_name(file.name, codecs[file.kind]) for file in files])
    codes = _targets(files, out, [file.name + SUFFIX for file in files])
    records: dict[MediaFile, CodeRecord] = {}
    for file in files:
        record = _encoded(file, codecs[file.kind], codes[file])
        if record and record.figures and read_comment(copies[file]) == record.mark:
            records[file] = record
    count.kept += len(records)
    todo = [file for file in files if file not in records]
    _check_ours(copies[file] for file in todo)
    for codec, batch in round_trips(todo, codecs, bar, count):

        def write(trip: RoundTrip, codec: FileCodec = codec) -> None:
            codec.write(copies[trip.file], trip.copy, trip.record.mark)
            _write_codes(codes[trip.file], trip.record, trip.file)

        _in_threads(write, batch)
        records |= {trip.file: trip.record for trip in batch}
        count.made += len(batch)
    figures = {}
    for kind, codec in codecs.items():
        totals = Totals(codec)
        items = []
        for file in files:
            if file.kind == kind and file in records:
                totals.add(records[file])
                copy = copies[file].relative_to(out).as_posix()
                items.append({"source": file.name, "copy": copy, **records[file].figures})
        figures[kind] = {**totals.summary(), "items": items}
    return figures


def round_trips(
    files: Sequence[MediaFile],
    codecs: Codecs,
    bar: Bar,
    count: Count,
    clocks: Mapping[Kind, Clock] | None = None,
) -> Iterator[tuple[FileCodec, list[RoundTrip]]]:
    """All files, encoded, decoded and compared, batch by batch; `clocks`, if given, note how long the codecs take."""
    for codec, batch in _media_batches(files, codecs, bar, count):
        clock = clocks[codec.kind].time if clocks else _untimed
        sources, prepared = zip(*batch, strict=True)
        media = [codec.shown(given) for given in prepared]
        amount = sum(map(codec.amount, media))
        rows = clock("encode", amount, functools.partial(codec.encode, prepared))
        records = _records(codec, sources, rows, prepared)
        copies = clock("decode", amount, functools.partial(codec.decode, records))
        losses = _in_threads(codec.distances, media, copies)
        records = [dataclasses.replace(record, figures=lost) for record, lost in zip(records, losses, strict=True)]
        yield codec, [RoundTrip(*row) for row in zip(sources, records, media, copies, strict=True)]


def _untimed(name: str, amount: float, work: Callable[[], _Result]) -> _Result:
    del name, amount
    return work()


# -- what is there already ------------------------------------------------------------------------------


def _targets(files: Sequence[MediaFile], out: Path, names: Sequence[str]) -> dict[MediaFile, Path]:
    """Where the result of each file goes; UserError for one place of two, or the place of an input."""
    paths = [out / name for name in names]
    pairs = [(str(file.path), path) for file, path in zip(files, paths, strict=True)]
    media_files.check_distinct(pairs, [file.path for file in files])
    return dict(zip(files, paths, strict=True))


def _media_name(name: str, codec: FileCodec) -> str:
    return str(Path(name).with_suffix(codec.suffix))


def _check_ours(paths: Iterable[Path]) -> None:
    """UserError for a file that decoding would replace and never made: the original may lie there."""
    for path in paths:
        if path.is_file() and not read_comment(path).startswith(MARK):
            raise UserError(f"{path} is there, and no decoding made it: choose another --out")


def _write_codes(path: Path, record: CodeRecord, file: MediaFile) -> None:
    """They bear the time of their source: a later call sees whether it changed, or another of its name was meant."""
    write_codes(path, record)
    os.utime(path, ns=(file.changed, file.changed))


def _encoded(file: MediaFile, codec: FileCodec, path: Path) -> CodeRecord | None:
    """The codes of a file, if they are there, made by this codec, and of the file as it is now."""
    try:
        if abs(path.stat().st_mtime_ns - file.changed) >= _SAME_TIME:
            return None
        ((_, record),) = read_codes(path)
    except (OSError, ValueError, UserError):  # none there, more than one line, or not made by us: made anew
        return None
    same = isinstance(record, CodeRecord) and (record.codec, record.source) == (codec.fingerprint, file.name)
    return record if same and isinstance(record, CodeRecord) else None


# -- batches --------------------------------------------------------------------------------------------


def _records(
    codec: FileCodec, files: Sequence[MediaFile], codes: Sequence[np.ndarray], prepared: Sequence[np.ndarray]
) -> list[CodeRecord]:
    return [
        CodeRecord(file.name, codec.kind, codec.fingerprint, row, codec.samples(given))
        for file, row, given in zip(files, codes, prepared, strict=True)
    ]


def _media_batches(
    files: Sequence[MediaFile], codecs: Codecs, bar: Bar, count: Count
) -> Iterator[tuple[FileCodec, list[tuple[MediaFile, np.ndarray]]]]:
    """(codec, [(file, prepared medium)]), kind by kind."""
    for kind, codec in codecs.items():
        mine = [file for file in files if file.kind == kind]
        costs = [codec.cost(file) for file in mine]
        for batch in _batches(mine, costs, codec.room, codec.read, bar, media_files.NAMES[kind], count):
            yield codec, batch


def _batches(
    items: Sequence[_Item],
    costs: Sequence[int],
    room: int,
    read: Callable[[_Item], _Result],
    bar: Bar,
    what: str,
    count: Count,
) -> Iterator[list[tuple[_Item, _Result]]]:
    """(item, what was read of it) in batches, the costly ones first, so that what takes too much memory fails at once.

    Rows of a batch times the cost of its first stay within `room`, but one row always goes. Each batch is read while
    the caller works on the one before.
    """
    order = sorted(range(len(items)), key=lambda at: -costs[at])
    pool, waiting = ThreadPoolExecutor(_THREADS), deque[list[tuple[_Item, Future[_Result]]]]()
    with bar(len(items), what) as shown:
        try:
            while order or waiting:
                if order:
                    size = max(1, min(_MOST_ROWS, room // max(1, costs[order[0]])))
                    chosen, order = order[:size], order[size:]
                    waiting.append([(items[at], pool.submit(read, items[at])) for at in chosen])
                if len(waiting) == 2 or not order:
                    taken = waiting.popleft()
                    if batch := list(_results(taken, count)):
                        yield batch
                    shown.update(len(taken))
        finally:
            pool.shutdown(cancel_futures=True)


def _results(taken: Sequence[tuple[_Item, Future[_Result]]], count: Count) -> Iterator[tuple[_Item, _Result]]:
    for item, future in taken:
        try:
            yield item, future.result()
        except UserError as error:
            count.fail(error)


def _in_threads(function: Callable[..., _Result], *columns: Sequence[Any]) -> list[_Result]:
    """function(a, b, ...) for the rows of the columns."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, *columns))
