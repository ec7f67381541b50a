"""Parquet and JSON-lines files as sources."""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aromni_jax.errors import UserError
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.items import Given, Part, Reject, files_state, split_named
from aromni_jax.prepare.tables import Table, kind_of

_ROWS_AT_ONCE = 64
_COLUMNS_TOLD = 20


@dataclasses.dataclass(frozen=True)
class _Files(abc.ABC):
    """What both kinds have in common: files that hold rows of one kind."""

    files: tuple[str, ...]
    columns: Columns

    @property
    def needs(self) -> frozenset[str]:
        return self._table.needs

    @property
    def sizes(self) -> Mapping[str, int] | None:
        return self._table.sizes

    @property
    def has_split(self) -> bool:
        return any(split_named(Path(file).stem) == "test" for file in self.files)

    def state(self) -> Mapping[str, Any]:
        return files_state(self.files)

    @property
    @abc.abstractmethod
    def _table(self) -> Table:
        """What the rows of all files mean."""

    def _split(self, file: str) -> str:
        return split_named(Path(file).stem) if self.has_split else ""


class ParquetSource(_Files):
    """Parquet files; a part is a row group."""

    @functools.cached_property
    def _table(self) -> Table:
        names = _parquet(self.files[0]).schema_arrow.names
        return Table(kind_of(names, self.columns, self.files[0]), self.columns)

    def parts(self, size: int) -> Iterator[tuple[Part, int]]:
        for file in self.files:
            metadata, first = _parquet(file).metadata, 0
            for group in range(metadata.num_row_groups):
                count = metadata.row_group(group).num_rows
                yield {"file": file, "group": group, "first": first}, count
                first += count

    def items(self, part: Part) -> Iterator[Given]:
        file, split = part["file"], self._split(part["file"])
        number = part["first"]
        try:
            for batch in _parquet(file).iter_batches(_ROWS_AT_ONCE, row_groups=[part["group"]]):
                for row in batch.to_pylist():
                    yield self._table.item(row, file, f"row {number}", split)
                    number += 1
        except (ValueError, OSError) as error:  # Arrow's own are of these kinds; a text that is none is the first
            reason = str(error).splitlines()[0]
            yield Reject(file, f"row {number} and the rest of its group", "unreadable Parquet", reason)


def _parquet(file: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{file}: reading Parquet takes pyarrow: pip install 'aromni_jax[beam]'") from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {file} as Parquet ({str(error).splitlines()[0]}); fetch it again") from None


class JsonlSource(_Files):
    """JSON-lines files; a part is a run of lines."""

    @functools.cached_property
    def _table(self) -> Table:
        for file in self.files:
            with Path(file).open("rb") as lines:
                row = next((row for row in map(_row, itertools.islice(lines, _COLUMNS_TOLD)) if row), None)
            if row:
                return Table(kind_of(row, self.columns, file, row), self.columns)
        raise UserError(f"{self.files[0]}: no JSON object in its first {_COLUMNS_TOLD} lines")

    def parts(self, size: int) -> Iterator[tuple[Part, int]]:
        for file in self.files:
            with Path(file).open("rb") as lines:
                start, first = 0, 1
                while count := sum(1 for _ in itertools.islice(_whole_lines(lines), size)):
                    yield {"file": file, "start": start, "first": first, "lines": count}, count
                    start, first = lines.tell(), first + count

    def items(self, part: Part) -> Iterator[Given]:
        file, split = part["file"], self._split(part["file"])
        with Path(file).open("rb") as lines:
            lines.seek(part["start"])
            for number, line in enumerate(itertools.islice(lines, part["lines"]), part["first"]):
                if not line.strip():
                    continue
                row = _row(line)
                if row is None:
                    yield Reject(
                        file, f"line {number}", "not a JSON object", line[:60].decode(errors="replace").strip()
                    )
                else:
                    yield self._table.item(row, file, f"line {number}", split)


def _whole_lines(lines: Any) -> Iterator[bytes]:
    """As iterating does, but `tell` says where the next one begins."""
    while line := lines.readline():
        yield line


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
