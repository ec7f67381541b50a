"""Data sets that TensorFlow Datasets has prepared, read from their files: neither TensorFlow nor a builder is needed.

TFDS's own reader needs TensorFlow for every data set with sound. The files are plain: a description of splits
(`dataset_info.json`) and features (`features.json`), and protocol buffers of fields in ArrayRecord or TFRecord files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aromni_jax.data.files import RecordFile
from aromni_jax.errors import UserError
from aromni_jax.prepare.columns import KNOWN, Columns
from aromni_jax.prepare.items import Blob, Given, Item, Part, Reject, Sound, Unusable, Wave, files_state, split_named
from aromni_jax.store import read_json

PREFIX = "tfds:"
_INFO, _FEATURES = "dataset_info.json", "features.json"
_FORMATS = ("array_record", "tfrecord")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_TFRECORD = struct.Struct("<QI")  # length and its checksum; behind the data four bytes of another
_HALF_RANGE = 2**15  # sound is whole numbers of 16 bits, of 32 where its files had more


def locate(name: str) -> str:
    """The folder of a data set: a path, or NAME, NAME/CONFIG, with or without :VERSION, below TFDS_DATA_DIR.

    Raises UserError: none there, or several configs to choose from.
    """
    root = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    wanted, _, version = name.partition(":")
    folder = Path(name) if Path(name).is_dir() else root / wanted / version
    found = sorted((path.parent for path in folder.glob("**/" + _INFO)), key=_version)
    if not found:
        raise UserError(
            f"no prepared data set {name} below {root}: prepare it (tfds build {wanted} --file_format=array_record), "
            "or set TFDS_DATA_DIR, or give its folder"
        )
    configs = {path.parent for path in found}
    if len(configs) > 1:
        names = ", ".join(sorted(path.name for path in configs))
        raise UserError(f"the data set {name} has several configs: name one of {names} behind a slash")
    return str(found[-1])


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) if number.isdigit() else 0 for number in folder.name.split("."))


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A prepared data set's folder."""

    folder: str
    columns: Columns

    sizes = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(("text", "image", "speech"))

    @property
    def has_split(self) -> bool:
        return any(split_named(split) == "test" for split in self._splits)

    def state(self) -> Mapping[str, Any]:
        files = [str(file) for shards in self._splits.values() for file, _ in shards]
        self._fields  # noqa: B018  what is wrong with them is told now
        return files_state(files)

    def parts(self, size: int) -> Iterator[tuple[Part, int]]:
        for split, shards in self._splits.items():
            for file, count in shards:
                step = size if _FORMATS[0] in file.name else max(1, count)  # the other one has no random access
                for start in range(0, count, step):
                    stop = min(start + step, count)
                    yield {"file": str(file), "split": split, "start": start, "stop": stop}, stop - start

    def items(self, part: Part) -> Iterator[Given]:
        from tensorflow_datasets.proto import tf_example_pb2

        file, split = part["file"], part["split"]
        told = (split_named(split) or "train") if self.has_split else ""
        try:
            for number, data in enumerate(_records(file, part["start"], part["stop"]), part["start"]):
                record = f"{split}/{Path(file).name[-14:]}/{number}"
                try:
                    fields = tf_example_pb2.Example.FromString(data).features.feature
                    yield self._item(fields, file, record, told)
                except UserError as error:
                    yield Reject.of(file, record, error)
                except Exception as error:  # the decoder of protocol buffers has kinds of its own
                    yield Reject(file, record, "bad record", str(error).strip())
        except UserError as error:
            yield Reject.of(file, split, error)

    def _item(self, fields: Mapping[str, Any], file: str, record: str, split: str) -> Item:
        names = self._fields
        words = fields[names["text"]].bytes_list.value if names["text"] else ()
        texts = [word.decode(errors="replace") for word in words]
        image, speech = None, None
        if names["image"]:
            values = fields[names["image"]].bytes_list.value
            if not values:
                raise Unusable("no medium", f"no {names['image']}")
            image = Blob(f"{file}/{record}", values[0])
        if names["speech"]:
            speech = self._sound(fields, names["speech"], f"{file}/{record}")
        return Item(file, record, split, tuple(texts), image, speech)

    def _sound(self, fields: Mapping[str, Any], field: str, name: str) -> Sound:
        facts = self._facts(field)
        shape = [int(size) for size in facts.get("shape", {}).get("dimensions", ())] or [-1]
        stored = fields[field]
        if shape.count(-1) > 1:
            stored, shape = fields[f"{field}/value"], list(fields[f"{field}/shape"].int64_list.value)
        encoding = str(facts.get("encoding", "none")).lower()
        wave = np.asarray(stored.int64_list.value or stored.float_list.value)
        if stored.bytes_list.value:
            data = stored.bytes_list.value[0]
            if encoding == "none":
                return Blob(name, data)
            wave = np.frombuffer(zlib.decompress(data) if encoding == "zlib" else data, facts["dtype"])
        if not wave.size:
            raise Unusable("bad sound", "no samples")
        try:
            wave = wave.reshape(shape)
        except ValueError:
            raise Unusable("bad sound", f"{wave.size} numbers do not make the shape {shape}") from None
        if wave.dtype.kind == "i":
            wide = np.abs(wave).max() > _HALF_RANGE
            wave = wave / (_HALF_RANGE**2 * 2 if wide else _HALF_RANGE)
        wave_n = wave if wave.ndim == 1 else wave.mean(axis=1)  # [time, channels]
        return Wave(wave_n.astype(np.float32), self._rate(field))

    @functools.cached_property
    def _splits(self) -> dict[str, list[tuple[Path, int]]]:
        """Split -> its files and the records in each."""
        info = read_json(Path(self.folder) / _INFO)
        file_format = info.get("fileFormat", "tfrecord")
        if file_format not in _FORMATS:
            raise UserError(f"{self.folder}: files of {file_format}; prepare it with --file_format=array_record")
        with _as_written(Path(self.folder) / _INFO):
            splits = self._listed(info, file_format)
        files = [file for shards in splits.values() for file, _ in shards]
        missing = [file for file in files if not file.is_file()]
        if missing or not files:
            raise UserError(f"{missing[0] if missing else self.folder}: no such file; prepare the data set again")
        return splits

    def _listed(self, info: Mapping[str, Any], file_format: str) -> dict[str, list[tuple[Path, int]]]:
        splits = {}
        for split in info.get("splits", []):
            lengths = [int(length) for length in split.get("shardLengths", [])]
            names = [
                (split.get("filepathTemplate") or _TEMPLATE).format(
                    DATASET=info["name"],
                    SPLIT=split["name"],
                    FILEFORMAT=file_format,
                    SHARD_INDEX=f"{at:05d}",
                    SHARD_X_OF_Y=f"{at:05d}-of-{len(lengths):05d}",
                )
                for at in range(len(lengths))
            ]
            splits[str(split["name"])] = [
                (Path(self.folder) / n, length) for n, length in zip(names, lengths, strict=True)
            ]
        return splits

    @functools.cached_property
    def _features(self) -> list[tuple[str, str, Mapping[str, Any]]]:
        """(name of the field, kind, facts) of all texts, pictures and sounds."""
        described = read_json(Path(self.folder) / _FEATURES)
        return list(_flat("", described))

    @functools.cached_property
    def _fields(self) -> dict[str, str | None]:
        """ "text", "image", "speech" -> the field that holds it."""
        with _as_written(Path(self.folder) / _FEATURES):
            return self._found()

    def _found(self) -> dict[str, str | None]:
        fields: dict[str, str | None] = {}
        for kind, feature in (("text", "text"), ("image", "image"), ("speech", "audio")):
            names = [name for name, of, _ in self._features if of == feature]
            chosen = self.columns.find(kind, names, self.folder) if kind in self.columns.named else None
            known = (name for word in KNOWN[kind] for name in names if word in name.split("/"))
            fields[kind] = chosen or next(known, names[0] if kind != "text" and names else None)
        if not any(fields.values()):
            there = ", ".join(name for name, *_ in self._features)
            raise UserError(f"{self.folder}: no text, picture or sound among {there or 'its features'}")
        if fields["speech"] and not self._rate(fields["speech"]):
            raise UserError(f"{self.folder}: it does not tell the sample rate of {fields['speech']}")
        return fields

    def _rate(self, field: str) -> int:
        """Hertz; 0 = not told."""
        return int(self._facts(field).get("sampleRate", 0))

    def _facts(self, field: str) -> Mapping[str, Any]:
        """What the description says of a field."""
        return next(facts for name, _, facts in self._features if name == field)


@contextlib.contextmanager
def _as_written(file: Path) -> Iterator[None]:
    """UserError for a description whose values are of other types than TFDS writes."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file}: not as TFDS writes it ({error!r}); prepare the data set again") from None


def _flat(name: str, feature: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for kind in ("text", "image", "audio"):
        if kind in feature:
            yield name, kind, feature[kind]
    if "sequence" in feature:
        yield from _flat(name, feature["sequence"].get("feature", {}))
    for key, inner in feature.get("featuresDict", {}).get("features", {}).items():
        yield from _flat(f"{name}/{key}" if name else key, inner)


def _records(file: str, start: int, stop: int) -> Iterable[bytes]:
    if _FORMATS[0] in Path(file).name:
        opened = RecordFile(file)
        if stop > len(opened):
            raise Unusable("unreadable file", f"{len(opened)} records, {_INFO} tells of {stop}")
        return (opened[index] for index in range(start, stop))
    return _tfrecords(file)


def _tfrecords(file: str) -> Iterator[bytes]:
    with open(file, "rb") as lines:
        while header := lines.read(_TFRECORD.size):
            if len(header) < _TFRECORD.size:
                raise Unusable("unreadable file", "cut off")
            length = _TFRECORD.unpack(header)[0]
            data = lines.read(length + 4)
            if len(data) < length + 4:
                raise Unusable("unreadable file", "cut off")
            yield data[:length]
