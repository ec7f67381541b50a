"""WebDataset: tar files whose neighbouring members of one name are an item: key.jpg, key.txt, key.wav, key.json."""

from __future__ import annotations

import dataclasses
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aromni_jax.errors import UserError
from aromni_jax.prepare.columns import KNOWN, Columns, texts_in
from aromni_jax.prepare.folders import IMAGES, SOUNDS
from aromni_jax.prepare.items import Blob, Given, Item, Part, Reject, files_state, split_named

SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclasses.dataclass(frozen=True)
class TarSource:
    """Tar files, each a part of its own: it can only be read from its beginning."""

    files: tuple[str, ...]
    columns: Columns

    needs = frozenset(("text", "image", "speech"))
    sizes = None

    @property
    def has_split(self) -> bool:
        return any(split_named(Path(file).name) == "test" for file in self.files)

    def state(self) -> Mapping[str, Any]:
        return files_state(self.files)

    def parts(self, size: int) -> Iterator[tuple[Part, int]]:
        for file in self.files:
            yield {"file": file}, 0

    def items(self, part: Part) -> Iterator[Given]:
        file = part["file"]
        split = split_named(Path(file).name) if self.has_split else ""
        key, fields = "", dict[str, bytes]()
        try:
            with tarfile.open(file, "r|*") as members:
                for member in members:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    if not stem or not member.isfile():  # a name that begins with a dot: what a Mac adds to each file
                        continue
                    at = f"{folder}/{stem}" if folder else stem
                    if at != key and fields:
                        yield self._item(file, key, split, fields)
                        fields = {}
                    reader = members.extractfile(member)
                    assert reader is not None  # it is a file
                    key, fields[extension.lower()] = at, reader.read()
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            yield Reject(file, key or "the whole", "unreadable tar", " ".join(str(error).split()))
            return
        if fields:
            yield self._item(file, key, split, fields)

    def _item(self, file: str, key: str, split: str, fields: Mapping[str, bytes]) -> Item | Reject:
        try:
            blobs = {name: Blob(f"{file}/{key}.{name}", data) for name, data in fields.items()}
            found = {
                kind: self._field(kind, fields, suffixes) for kind, suffixes in (("image", IMAGES), ("speech", SOUNDS))
            }
            image, speech = (blobs[name] if name else None for name in found.values())
            return Item(file, key, split, self._texts(fields, f"{file}/{key}"), image, speech)
        except UserError as error:
            return Reject.of(file, key, error)

    def _field(self, kind: str, fields: Mapping[str, bytes], suffixes: frozenset[str]) -> str | None:
        if kind in self.columns.named:
            return self.columns.find(kind, fields, "this item")
        return next((name for name in fields if f".{name.rpartition('.')[2]}" in suffixes), None)

    def _texts(self, fields: Mapping[str, bytes], where: str) -> tuple[str, ...]:
        """Of a member of its own, or in the item's JSON."""
        named = self.columns.named.get("text")
        member = named if named in fields else next((name for name in KNOWN["text"] if name in fields), None)
        if member and (named is None or named in fields):
            return texts_in(fields[member])
        if "json" not in fields:
            return () if named is None else self.columns.texts(fields, where)
        try:
            row = json.loads(fields["json"])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}.json: not JSON ({error})") from None
        return self.columns.texts(row, f"{where}.json") if isinstance(row, dict) else texts_in(row)
