"""Rows of a table, whatever file they come from: token streams, or media with their texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aromni_jax.errors import UserError
from aromni_jax.prepare import anygpt
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.items import Blob, Given, Item, Picture, Reject, Sound, Stream, Unusable, Wave

Kind = Literal["pretraining", "tuning", "anygpt", "media"]
_LONGEST = 1299  # tokens of a pretraining record: the reference leaves out longer ones (SPEC 2.1)
_IGNORED = -100  # the label of a token that carries no loss (SPEC 2.2)


def kind_of(columns: Collection[str], named: Columns, where: str, texts: Mapping[str, Any] | None = None) -> Kind:
    """What the rows of a table are, from the names of its columns, and a row where the names do not tell.

    Raises UserError: nothing that is known.
    """
    if {"discrete_code", "task"} <= set(columns):
        return "pretraining"
    if {"input_ids", "labels"} <= set(columns):
        return "tuning"
    if texts is not None and anygpt.is_row(texts):
        return "anygpt"
    found = {kind: named.find(kind, columns, where) for kind in ("text", "image", "speech")}
    if any(found.values()):
        return "media"
    raise UserError(
        f"{where}: no columns discrete_code and task, or input_ids and labels, or text, image or audio; it has "
        f"{', '.join(map(str, columns)) or 'none'}: name them with --columns"
    )


@dataclasses.dataclass(frozen=True)
class Table:
    """How rows are read; paths in them are relative to the folder of their file."""

    kind: Kind
    columns: Columns

    @property
    def needs(self) -> frozenset[str]:
        """As of a `Source`."""
        if self.kind == "media":
            return frozenset(("text", "image", "speech"))
        return frozenset(("text",) if self.kind == "anygpt" else ())

    @property
    def sizes(self) -> Mapping[str, int] | None:
        """As of a `Source`."""
        return anygpt.SIZES if self.kind == "anygpt" else None

    def item(self, row: Mapping[str, Any], file: str, record: str, split: str) -> Given:
        """What a row holds."""
        try:
            if self.kind == "pretraining":
                return _pretraining(row, file, record, split)
            if self.kind == "tuning":
                return _tuning(row, file, record, split)
            if self.kind == "anygpt":
                return anygpt.item(row, file, record, split)
            return self._media(row, file, record, split)
        except KeyError as error:
            return Reject(file, record, "missing field", f"no field {error}")
        except UserError as error:
            return Reject.of(file, record, error)
        except (TypeError, ValueError, OverflowError, AttributeError) as error:  # of a value that is of another type
            return Reject(file, record, "bad record", str(error).split("\n")[0])

    def _media(self, row: Mapping[str, Any], file: str, record: str, split: str) -> Item:
        texts = self.columns.texts(row, file)
        media: dict[str, Any] = {}
        for kind in ("image", "speech"):
            column = self.columns.find(kind, row, file)
            if column and row[column] is not None:
                media[kind] = _medium(row[column], Path(file).parent, f"{file}/{record}.{column}")
        return Item(file, record, split, texts, media.get("image"), media.get("speech"))


def _medium(cell: Any, folder: Path, name: str) -> Picture | Sound:
    """A path from that folder, a file's bytes, or what Hugging Face puts there: {"bytes", "path"}, {"array",
    "sampling_rate"}.
    """
    if isinstance(cell, str):
        return folder / cell
    if isinstance(cell, bytes):
        return Blob(name, cell)
    if isinstance(cell, Mapping) and isinstance(cell.get("bytes"), bytes):
        return Blob(str(cell.get("path") or name), cell["bytes"])
    if isinstance(cell, Mapping) and cell.get("array") is not None:
        return Wave(_mono(np.asarray(cell["array"], np.float32)), int(cell["sampling_rate"]))
    if isinstance(cell, Mapping) and cell.get("path"):
        return folder / cell["path"]
    raise Unusable("no medium", f"{name}: {type(cell).__name__} is neither a path nor a file's bytes")


def _mono(wave: np.ndarray) -> np.ndarray:
    """[n], [n, channels] or [channels, n] -> [n]; `Unusable` for other shapes. Channels are fewer than samples."""
    if wave.ndim not in (1, 2):
        raise Unusable("bad sound", f"samples of shape {list(wave.shape)}")
    return wave if wave.ndim == 1 else wave.mean(axis=int(np.argmin(wave.shape)))


def _pretraining(row: Mapping[str, Any], file: str, record: str, split: str) -> Stream:
    """SPEC 2.1."""
    tokens, task, response = row["discrete_code"], row["task"], row.get("response")
    tokens = [] if tokens is None else tokens
    try:
        count = len(tokens)
        # The reference clips a response that is longer than its record (SPEC 4.1: min(k, eligible)).
        length = min(len(() if response is None else response), count)
    except TypeError:
        raise Unusable("bad record", "discrete_code or response is no list") from None
    if not 0 < count <= _LONGEST:
        raise Unusable("too long" if count else "no tokens", f"{count} tokens, the reference takes {_LONGEST}")
    name = f"{file}:{record}" if row.get("id") is None else str(row["id"])
    return Stream(file, record, split, tokens, task, length, id=name)


def _tuning(row: Mapping[str, Any], file: str, record: str, split: str) -> Stream:
    """SPEC 2.2."""
    tokens, labels = (np.asarray(() if row[name] is None else row[name]) for name in ("input_ids", "labels"))
    if tokens.ndim != 1 or tokens.shape != labels.shape:
        raise Unusable("bad record", f"{tokens.size} input_ids and {labels.size} labels")
    if not tokens.size:
        raise Unusable("no tokens")
    carried = labels != _IGNORED
    if not np.array_equal(labels[carried], tokens[carried]):
        raise Unusable("labels are not the tokens", "a label is neither -100 nor the id at its place")
    return Stream(file, record, split, tokens, "chat", None, carried, id=f"{file}:{record}")
