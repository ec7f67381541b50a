"""Which format a place holds, seen from what lies there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from aromni_jax.errors import UserError
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.files import JsonlSource, ParquetSource
from aromni_jax.prepare.folders import METADATA, FolderSource, walk
from aromni_jax.prepare.items import Source
from aromni_jax.prepare.tars import SUFFIXES, TarSource
from aromni_jax.prepare.tfds import PREFIX, TfdsSource, locate

_FILES: Sequence[tuple[tuple[str, ...], Callable[[tuple[str, ...], Columns], Source]]] = (
    (SUFFIXES, TarSource),
    ((".parquet",), ParquetSource),
    ((".jsonl",), JsonlSource),
)
_FORMATS = (
    "a folder of pictures, sound or text files with their captions or transcripts, WebDataset *.tar, *.parquet, "
    "*.jsonl, a folder of these, or tfds:NAME"
)


def open_source(place: str, columns: Columns) -> Source:
    """The data at a place; UserError if there is none, or of no known format."""
    if place.startswith(PREFIX):
        return TfdsSource(locate(place.removeprefix(PREFIX)), columns)
    path = Path(place)
    if not path.exists():
        raise UserError(f"{place}: no such file or folder; give {_FORMATS}")
    for suffixes, make in _FILES:
        if files := _files(path, suffixes):
            return make(tuple(files), columns)
    if path.is_dir():
        return FolderSource(place, columns)
    raise UserError(f"{place}: unknown format; give {_FORMATS}")


def _files(path: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The file itself, or those of a folder and of the folders in it, in order of name, that end so.

    Names that begin with a dot are passed over, as in a folder of media.
    """
    if not path.is_dir():
        return [str(path)] if path.name.endswith(suffixes) and path.name not in METADATA else []
    found = []
    for folder, folders, names in walk(path):
        if folder != str(path):
            folders.clear()
        found += [os.path.join(folder, name) for name in names if name.endswith(suffixes) and name not in METADATA]
    return sorted(found)
