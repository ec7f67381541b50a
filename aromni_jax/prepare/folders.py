"""Folders of pictures, sound and text files, with their captions and transcripts in the layouts that are in use.

    cat.jpg cat.txt              a text beside each medium, of the same name
    metadata.jsonl               {"file_name": "cat.jpg", "text": "a cat"} per line, as Hugging Face has it
    metadata.csv                 the same as a table with a header; or LJSpeech's ID|text|normalised text without one
    84-121123.trans.txt          ID text per line, as LibriSpeech has it
    notes.txt                    without a medium: plain text

Folders train and test (or validation, dev ...) at the top are the splits. Links to folders are followed.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aromni_jax.errors import UserError
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.items import Given, Item, Part, Reject, Unusable, split_named

IMAGES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
SOUNDS = frozenset((".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"))
METADATA = ("metadata.jsonl", "metadata.csv")
_TRANSCRIPTS = ".trans.txt"
_LJ_FOLDER = "wavs"
_BAD_LINE = "bad line of the metadata"

# {"at": name, "image": file, "speech": file, "texts": [...], "text_file": file}, or "fault": (reason, detail)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """A folder of media."""

    folder: str
    columns: Columns

    needs = frozenset(("text", "image", "speech"))
    sizes = None

    @property
    def has_split(self) -> bool:
        return any(
            split_named(path.name) == "test"
            for path in Path(self.folder).iterdir()
            if _seen(path.name) and path.is_dir()
        )

    def state(self) -> Mapping[str, Any]:
        digest, count = hashlib.sha256(), 0
        for folder, _, names in walk(self.folder, _unreadable):
            for name in names:
                facts = os.lstat(os.path.join(folder, name))  # a link that leads nowhere is told when it is read
                if stat.S_ISLNK(facts.st_mode):
                    with contextlib.suppress(OSError):
                        facts = os.stat(os.path.join(folder, name))
                digest.update(f"{folder}/{name} {facts.st_size} {facts.st_mtime_ns}\n".encode(errors="surrogateescape"))
                count += 1
        return {"folder": str(Path(self.folder).absolute()), "files": count, "digest": digest.hexdigest()[:16]}

    def parts(self, size: int) -> Iterator[tuple[Part, int]]:
        rows: list[Row] = []
        for row in self._rows():
            rows.append(row)
            if len(rows) == size:
                yield {"rows": rows}, len(rows)
                rows = []
        if rows:
            yield {"rows": rows}, len(rows)

    def items(self, part: Part) -> Iterator[Given]:
        for row in part["rows"]:
            yield self._item(row)

    def _item(self, row: Row) -> Item | Reject:
        root, name = Path(self.folder), row["at"]
        texts = row.get("texts") or []
        if "text_file" in row:
            path = root / row["text_file"]
            try:
                texts = [path.read_text(encoding="utf-8-sig")]
            except (OSError, UnicodeDecodeError) as error:
                reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
                return Reject(str(path), name, "bad text", reason)
        media: dict[str, Path] = {kind: root / row[kind] for kind in ("image", "speech") if kind in row}
        file = str(next(iter(media.values()), root / str(row.get("text_file", name))))
        if row.get("fault"):
            return Reject(file, name, *row["fault"])
        split = split_named(name.split("/")[0]) if "/" in name and self.has_split else ""
        return Item(file, name, split, tuple(texts), media.get("image"), media.get("speech"))

    def _rows(self) -> Iterator[Row]:
        found = False
        for folder, folders, names in walk(self.folder, _unreadable):
            place = Path(folder).relative_to(self.folder)
            metadata = next((name for name in METADATA if name in names), None)
            if metadata:
                rows = self._listed(Path(folder) / metadata, place)
                folders.clear()  # what lies below is named there, or not meant
            else:
                rows = self._side_by_side(Path(folder), place, names)
            for row in rows:
                found = True
                yield row
        if not found:
            raise UserError(f"{self.folder}: no picture, no sound and no text file; check the path")

    def _side_by_side(self, folder: Path, place: Path, names: list[str]) -> Iterator[Row]:
        spoken: dict[str, str] = {}
        for name in names:
            if name.endswith(_TRANSCRIPTS) and (folder / name).exists():
                lines = (folder / name).read_text(errors="replace").splitlines()
                spoken |= {key: text for key, _, text in (line.partition(" ") for line in lines)}
        groups: dict[str, Row] = {}
        for name in names:
            stem, suffix = os.path.splitext(name)
            at = (place / stem).as_posix()
            kind = "image" if suffix.lower() in IMAGES else "speech" if suffix.lower() in SOUNDS else ""
            if suffix.lower() == ".txt" and not name.endswith(_TRANSCRIPTS):
                kind = "text_file"
            if kind and kind in groups.get(stem, ()):  # cat.png beside cat.jpg
                groups[name] = {"at": f"{at}{suffix}", kind: (place / name).as_posix()}
            elif kind:
                groups.setdefault(stem, {"at": at})[kind] = (place / name).as_posix()
            elif (folder / name).is_symlink() and not (folder / name).exists():  # others are told when they are read
                yield {"at": (place / name).as_posix(), "fault": ("dead link", f"to {os.readlink(folder / name)}")}
        for stem, row in groups.items():
            if stem in spoken:
                row["texts"] = [spoken[stem]]
            yield row

    def _listed(self, metadata: Path, place: Path) -> Iterator[Row]:
        for number, row in _table(metadata):
            at = f"{(place / metadata.name).as_posix()}:{number}"
            if isinstance(row, str):
                yield {"at": at, "fault": (_BAD_LINE, row)}
                continue
            file = place / row["file_name"]
            kind = "image" if file.suffix.lower() in IMAGES else "speech"
            try:
                texts = list(self.columns.texts(row, str(metadata)))
            except Unusable as error:
                yield {"at": at, "fault": (_BAD_LINE, str(error))}
                continue
            yield {"at": os.path.splitext(file.as_posix())[0], kind: file.as_posix(), "texts": texts}


def walk(
    folder: str | Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder, folders in it, files in it) of a tree, as `os.walk`, each folder once, in order of name.

    Names that begin with a dot are passed over. Links to folders come after all that is there without them; one to a
    folder that has come, or that the tree lies in, is not followed.
    """
    come = {_identity(parent) for parent in Path(folder).resolve().parents}
    linked = collections.deque([os.fspath(folder)])
    while linked:
        below = [linked.popleft()]
        while below:  # a folder at a time: `os.walk` calls itself for each level, and a tree may have thousands
            for place, folders, names in itertools.islice(os.walk(below.pop(), onerror=onerror), 1):
                if (identity := _identity(place)) in come:
                    continue
                come.add(identity)
                folders[:] = sorted(filter(_seen, folders))
                yield place, folders, sorted(filter(_seen, names))
                paths = [os.path.join(place, name) for name in folders]
                linked += filter(os.path.islink, paths)
                below += reversed([path for path in paths if not os.path.islink(path)])


def _identity(folder: str | Path) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino


def _table(metadata: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, row with a file_name, or what is wrong with it) of a metadata file; UserError if all of it is."""
    with metadata.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        if metadata.suffix == ".jsonl":
            yield from _json_rows(metadata, lines)
            return
        first = lines.readline()
        lines.seek(0)
        if "|" in first and "file_name" not in first:
            for number, line in enumerate(lines, 1):
                name, *texts = line.rstrip("\r\n").split("|")
                if line.strip():
                    yield number, {"file_name": f"{_LJ_FOLDER}/{name}.wav", "text": texts[-1] if texts else ""}
            return
        reader = csv.DictReader(lines)
        if "file_name" not in (reader.fieldnames or ()):
            raise UserError(
                f"{metadata}: no column file_name; its header has {', '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        try:
            for row in reader:
                yield reader.line_num, row if row["file_name"] else "no file_name"
        except csv.Error as error:  # most often of a quote that nothing closes
            raise UserError(f"{metadata}, line {reader.line_num}: {error}; is a quote not closed there?") from None


def _json_rows(metadata: Path, lines: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            good = isinstance(row, dict) and isinstance(row.get("file_name"), str)
            yield number, row if good else "no file_name"
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON ({error})"


def _seen(name: str) -> bool:
    """Whether a name does not begin with a dot."""
    return not name.startswith(".")


def _unreadable(error: OSError) -> None:
    raise UserError(f"cannot look into {error.filename} ({error.strerror})")
