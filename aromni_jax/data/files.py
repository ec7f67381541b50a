"""Record files: an atomic ArrayRecord writer and a random-access reader."""

from __future__ import annotations

import bisect
import itertools
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from aromni_jax.data import reading
from aromni_jax.data.record import Record
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

SUFFIX = ".array_record"
_GROUP = 8  # records


class RecordWriter:
    """Writes byte records; the file appears under its name only when all of it is on disk.

    Use as a context manager: leaving it by an error removes what was written.

    Raises:
      UserError: the disk is full, the folder is missing or read-only.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            # A reader keeps 16 bytes of index per group in memory, and reads a whole group for any of its records.
            self._writer = ArrayRecordWriter(str(self._partial), f"group_size:{_GROUP}")
        except (RuntimeError, OSError) as error:
            raise self._failed(error) from None
        if not self._writer.ok():
            raise self._failed("cannot be opened; is the folder there and writable?")

    def write(self, data: bytes) -> None:
        """Append one record."""
        try:
            self._writer.write(data)
        except (RuntimeError, OSError) as error:
            raise self._failed(error) from None

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if kind is None:
                os.replace(self._partial, self.path)
        except (RuntimeError, OSError) as problem:
            if kind is None:  # otherwise the first error is the one to show
                raise self._failed(problem) from None
        finally:
            self._partial.unlink(missing_ok=True)

    def _failed(self, error: object) -> UserError:
        reason = str(error).split(";")[0].removeprefix("write() failed: ")
        return UserError(f"cannot write {self.path}: {reason}")


class RecordFile:
    """Random access to the byte records of one file; safe to use from several threads.

    Raises:
      UserError: no such file, cut off, or damaged (names file and record).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        with reading.noted(self.path):
            if not self.path.is_file():
                raise UserError(f"{self.path}: no such file; make it with `aromni prepare`")
            self._reader = ArrayRecordReader(str(self.path))
        if not self._reader.ok():
            raise UserError(f"{self.path}: cut off or no ArrayRecord file; make it again with `aromni prepare`")
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._reader.num_records()

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            with reading.noted(self.path, self.where(index)), self._lock:
                # A range is read in this thread; a list of indices goes to a pool of threads, and takes milliseconds.
                return self._reader.read(index, index + 1)[0]
        except RuntimeError as error:
            reason = str(error).split(";")[0]
            raise UserError(f"{self.where(index)}: damaged ({reason})") from None

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Records in the order asked for, at once: several times faster than one by one."""
        try:
            with self._lock:
                return self._reader.read(list(indices))
        except RuntimeError:
            return [self[index] for index in indices]  # says which one is damaged

    def where(self, index: int) -> str:
        """How error messages name a record of this file."""
        return f"{self.path} record {index}"


class Concatenated:
    """Several record files seen as one, in order."""

    def __init__(self, files: Sequence[RecordFile | Concatenated]) -> None:
        self._files = files
        self._ends = list(itertools.accumulate(map(len, files)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        number, at = self._place(index)
        return self._files[number][at]

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Records in the order asked for, with one call for each file."""
        wanted: dict[int, list[tuple[int, int]]] = {}
        for place, index in enumerate(indices):
            number, at = self._place(index)
            wanted.setdefault(number, []).append((place, at))
        records = [b""] * len(indices)
        for number, pairs in wanted.items():
            for (place, _), data in zip(pairs, self._files[number].read([at for _, at in pairs]), strict=True):
                records[place] = data
        return records

    def where(self, index: int) -> str:
        """How error messages name a record."""
        number, at = self._place(index)
        return self._files[number].where(at)

    def _place(self, index: int) -> tuple[int, int]:
        """(file, record in it)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect.bisect_right(self._ends, index)
        return which, index - (self._ends[which - 1] if which else 0)


def write_records(path: str | os.PathLike[str], records: Sequence[Record]) -> None:
    """Write a record file; UserError if that fails."""
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record.to_bytes())


def read_records(path: str | os.PathLike[str], vocabulary: JointVocabulary) -> Iterator[Record]:
    """Every record of a file, checked; UserError names file, record and reason."""
    file = RecordFile(path)
    for index in range(len(file)):
        record = Record.from_bytes(file[index], file.where(index))
        record.check(vocabulary, f"{file.where(index)} ({record.id})")
        yield record
