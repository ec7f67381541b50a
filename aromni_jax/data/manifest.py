"""`manifest.json`: what a prepared data set is, who made it, and what is in it."""

from __future__ import annotations

import array
import dataclasses
import itertools
import json
import os
import pathlib
import reprlib
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from aromni_jax.data.files import SUFFIX, Concatenated, RecordFile, RecordWriter
from aromni_jax.data.packing import Efficiency, best_fit_parts, efficiency
from aromni_jax.data.record import Record
from aromni_jax.data.rows import Row
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary, Modality

NAME = "manifest.json"
_VERSION = 1
_COUNTED_AT_ONCE = 256
_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedRows:
    """A file of packed rows.

    Attributes:
      rows: file name, relative to the manifest.
      row_count: how many.
      efficiency: the fields of `packing.Efficiency`.
    """

    rows: str
    row_count: int
    efficiency: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component(PackedRows):
    """One named part of a split: its records, and the same packed.

    Attributes:
      records: file name, relative to the manifest.
      examples: how many records.
      tokens: real tokens (padding not counted).
      tokens_by_modality: modality name -> tokens.
      tasks: task -> {"examples": n, "tokens": n}.
    """

    records: str
    examples: int
    tokens: int
    tokens_by_modality: dict[str, int]
    tasks: dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared data set.

    Attributes:
      vocabulary: the joint vocabulary of the tokens.
      codecs: codec name -> fingerprint.
      sequence_length: tokens of a packed row.
      request: what was asked for (sizes, seed, mixture, template ...); the same request need not be done again.
      splits: split -> component name -> Component.
      joint: split -> all of its examples packed together, which fills rows better than component by component.
      statistics: further figures of the preparation (hours of speech, seconds it took ...).
    """

    vocabulary: JointVocabulary
    codecs: dict[str, str]
    sequence_length: int
    request: dict[str, Any]
    splits: dict[str, dict[str, Component]]
    joint: dict[str, PackedRows]
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """`from_json` is the inverse."""
        values = dataclasses.asdict(self)
        values["vocabulary"] = self.vocabulary.to_dict()
        fingerprint = self.vocabulary.fingerprint()
        return json.dumps({"version": _VERSION, "vocabulary_fingerprint": fingerprint, **values}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Inverse of `to_json`; UserError prefixed by `where`, which names the field that is not as it was written."""
        try:
            values = _checked(dict[str, Any], json.loads(text), "the whole")
            version = values.pop("version", None)
            if version != _VERSION:
                raise ValueError(f"version {version!r}, this program reads version {_VERSION}")
            fingerprint = values.pop("vocabulary_fingerprint", None)
            vocabulary = JointVocabulary.from_dict(_checked(dict[str, Any], values.get("vocabulary"), "vocabulary"))
            if vocabulary.fingerprint() != fingerprint:
                raise ValueError("its vocabulary does not match its own fingerprint: it was edited")
            made = _checked(cls, values | {"vocabulary": vocabulary}, "")
            made._check_names()
            return made
        except (ValueError, RecursionError) as error:  # a UserError is one
            raise UserError(f"{where}: no data set manifest ({error}); run `aromni prepare` again") from None

    def _check_names(self) -> None:
        """ValueError unless the tables have the keys that everyone asks for."""
        _checked(str, self.request.get("world") or "", "request.world")
        _checked(dict[str, str], self.request.get("codecs_at") or {}, "request.codecs_at")
        _check_keys(self.joint, self.splits, "joint")
        for split, parts in self.splits.items():
            packed = {f"joint.{split}": self.joint[split], **{f"splits.{split}.{n}": part for n, part in parts.items()}}
            for where, rows in packed.items():
                _check_keys(rows.efficiency, [field.name for field in dataclasses.fields(Efficiency)], where)
            for name, part in parts.items():
                where = f"splits.{split}.{name}"
                _check_keys(part.tokens_by_modality, [kind.name.lower() for kind in Modality], where)
                for task, figures in part.tasks.items():
                    _check_keys(figures, ("examples", "tokens"), f"{where}.tasks.{task}")

    def components(self, split: str, names: Sequence[str] = ()) -> dict[str, Component]:
        """The named components of a split (all of them if no name is given); UserError for an unknown one."""
        if split not in self.splits:
            raise UserError(f"the data set has no split {split!r}: it has {', '.join(self.splits)}")
        known = self.splits[split]
        for name in names:
            if name not in known:
                raise UserError(f"the data set has no component {name!r}: it has {', '.join(known)}")
        return {name: known[name] for name in (names or known)}

    def figures(self, split: str) -> dict[str, Any]:
        """Of a whole split: examples, tokens, tokens_by_modality, and row_count and packing of the joint rows."""
        parts = self.components(split).values()
        modalities = {kind.name.lower(): 0 for kind in Modality}
        for part in parts:
            for kind, count in part.tokens_by_modality.items():
                modalities[kind] += count
        joint = self.joint[split]
        return {
            "examples": sum(part.examples for part in parts),
            "tokens": sum(part.tokens for part in parts),
            "tokens_by_modality": modalities,
            "row_count": joint.row_count,
            "packing": joint.efficiency,
        }

    def check_vocabulary(self, vocabulary: JointVocabulary, where: str) -> None:
        """UserError unless the data was made with `vocabulary`."""
        made, asked = self.vocabulary.fingerprint(), vocabulary.fingerprint()
        if made != asked:
            raise UserError(
                f"{where}: the data was made with another vocabulary ({made}, {self.vocabulary.size} ids) than the "
                f"model's ({asked}, {vocabulary.size} ids); prepare it again or use the matching model"
            )


def is_data_set(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a prepared data set, of any version, or a damaged one: others have a file of this name."""
    path = pathlib.Path(folder) / NAME
    return path.is_file() and b'"vocabulary_fingerprint"' in path.read_bytes()


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a prepared data set; UserError if there is none or it is damaged."""
    path = pathlib.Path(folder) / NAME
    if not path.is_file():
        raise UserError(f"{path}: no such file; {folder} is no prepared data set: make one with `aromni prepare`")
    return Manifest.from_json(path.read_text(errors="replace"), str(path))


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write it atomically; it is the last file of a data set, so its presence means that all others are whole."""
    path = pathlib.Path(folder) / NAME
    partial = path.with_name(f".{NAME}.partial")
    try:
        partial.write_text(manifest.to_json())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def write_split(
    folder: str | os.PathLike[str],
    split: str,
    components: Mapping[str, Iterable[Record]],
    *,
    sequence_length: int,
    vocabulary: JointVocabulary,
    seed: int = 0,
) -> tuple[dict[str, Component], PackedRows]:
    """Write the records of every component, packed by component and all together, below `folder`/`split`.

    Records are taken one by one and never kept: of each, four bytes are.

    Returns:
      What `Manifest.splits` and `Manifest.joint` hold for the split.

    Raises:
      UserError: a record is longer than a row, or writing fails.
    """
    folder = pathlib.Path(folder)
    (folder / split).mkdir(parents=True, exist_ok=True)

    def packed(stem: str, files: Sequence[RecordFile], lengths: np.ndarray) -> PackedRows:
        file = f"{stem}.rows{SUFFIX}"
        return _write_rows(folder, file, Concatenated(files), lengths, sequence_length, vocabulary, seed)

    written, files, lengths = {}, [], []
    for name, records in components.items():
        file = f"{split}/{name}.records{SUFFIX}"
        tally = _Tally(vocabulary)
        with RecordWriter(folder / file) as writer:
            for record in records:
                if len(record) > sequence_length:
                    raise UserError(
                        f"{split}/{name}: record {record.id} has {len(record)} tokens, a row takes {sequence_length}: "
                        "raise the sequence length"
                    )
                writer.write(record.to_bytes())
                tally.add(record)
        files.append(RecordFile(folder / file))
        lengths.append(np.frombuffer(tally.lengths, np.uint32))
        written[name] = Component(
            **vars(packed(f"{split}/{name}", files[-1:], lengths[-1])), records=file, **tally.figures()
        )
    return written, packed(split, files, np.concatenate([np.zeros(0, np.uint32), *lengths]))


def _write_rows(
    folder: pathlib.Path,
    file: str,
    records: Concatenated,
    lengths: np.ndarray,
    capacity: int,
    vocabulary: JointVocabulary,
    seed: int,
) -> PackedRows:
    row_count = 0
    with RecordWriter(folder / file) as writer:
        rows = best_fit_parts(lengths, capacity, seed)
        while taken := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            read = iter(records.read(np.concatenate(taken).tolist()))
            for members in taken:
                row = Row.of([Record.from_bytes(next(read)) for _ in members], capacity, vocabulary)
                writer.write(row.to_bytes())
            row_count += len(taken)
    figures = dataclasses.asdict(efficiency(lengths, row_count, capacity))
    return PackedRows(rows=file, row_count=row_count, efficiency=figures)


def _checked(hint: Any, value: Any, field: str) -> Any:
    """JSON as the annotated type; ValueError that names the field where it is none. Numbers are 0 or more."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is JointVocabulary:
        return value
    if origin is dict:
        _require(isinstance(value, dict), field, value, "an object")
        return {key: _checked(args[1], inner, f"{field}.{key}") for key, inner in value.items()}
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        _require(isinstance(value, dict), field, value, "an object")
        _check_keys(value, hints, field)
        inner = {key: _checked(hints[key], value[key], f"{field}.{key}".lstrip(".")) for key in hints}
        return typing.cast(type, hint)(**inner)
    if hint is str:
        _require(isinstance(value, str), field, value, "a string")
        return value
    kinds, name = (int, "a whole number") if hint is int else ((int, float), "a number")
    good = isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value < 2**63
    _require(good, field, value, name)
    return value


def _check_keys(found: Iterable[str], wanted: Iterable[str], field: str) -> None:
    odd = sorted(set(found) ^ set(wanted))
    if odd:
        raise ValueError(f"{field or 'the whole'}: missing or unknown: {', '.join(odd)}")


def _require(good: bool, field: str, value: Any, expected: str) -> None:
    if not good:
        raise ValueError(f"{field} is {reprlib.repr(value)}; expected {expected}")


class _Tally:
    """What a component's manifest says of its records.

    Attributes:
      lengths: tokens of each, 32 bits a number.
    """

    def __init__(self, vocabulary: JointVocabulary) -> None:
        self._vocabulary = vocabulary
        self._modalities = np.zeros(len(Modality), np.int64)
        self._tasks: dict[str, dict[str, int]] = {}
        self._waiting: list[np.ndarray] = []  # tokens whose modalities are yet to be counted, many records at once
        self.lengths = array.array("I")

    def add(self, record: Record) -> None:
        """Count one."""
        self.lengths.append(len(record))
        self._waiting.append(record.tokens)
        if len(self._waiting) == _COUNTED_AT_ONCE:
            self._count()
        figures = self._tasks.setdefault(record.task, {"examples": 0, "tokens": 0})
        figures["examples"] += 1
        figures["tokens"] += len(record)

    def _count(self) -> None:
        kinds = self._vocabulary.modality(np.concatenate([np.zeros(0, np.uint16), *self._waiting]))
        self._modalities += np.bincount(kinds, minlength=len(Modality))
        self._waiting.clear()

    def figures(self) -> dict[str, Any]:
        """Fields of `Component`."""
        self._count()
        return {
            "examples": len(self.lengths),
            "tokens": sum(self.lengths),
            "tokens_by_modality": {kind.name.lower(): int(self._modalities[kind]) for kind in Modality},
            "tasks": self._tasks,
        }
