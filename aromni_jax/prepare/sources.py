"""Which format a place holds, seen from what lies there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from aromni_jax.errors import UserError
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.folders import METADATA, FolderSource
from aromni_jax.prepare.items import Source

FORMATS = (
    "a folder of pictures, sound or text files with their captions or transcripts, WebDataset *.tar, *.parquet, *.jsonl "
    "of ids (the reference's or AnyGPT's), or tfds:NAME"
)


def open_source(place: str, columns: Columns) -> Source:
    """The data at a place; UserError if there is none, or of no known format."""
    path = Path(place)
    if not path.exists():
        raise UserError(f"{place}: no such file or folder; give {FORMATS}")
    if path.is_dir():
        return FolderSource(place, columns)
    raise UserError(f"{place}: unknown format; give {FORMATS}")
