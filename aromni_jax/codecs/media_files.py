"""Pictures and sound files in folders: which there are, what they are, and what their results are to be called."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import soundfile
from PIL import Image

from aromni_jax.codecs.media import PICTURE_FORMATS, sound_path
from aromni_jax.errors import UserError

Kind = Literal["image", "speech"]
NAMES: dict[Kind, str] = {"image": "picture", "speech": "sound"}
# A file of such a name in a folder is meant to be read: it is an error if it cannot be. Others are told by what they
# are, and passed over if they are no media at all.
_SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"), "speech"),
}
_LONGEST_NAME = 255  # bytes; of every common file system


@dataclasses.dataclass(frozen=True)
class Found:
    """A file that was given, or lies in a folder that was given.

    Attributes:
      name: its path below that folder, with slashes; of a file given itself, its last part.
      given: whether it was given itself.
    """

    path: Path
    name: str
    given: bool


@dataclasses.dataclass(frozen=True)
class MediaFile:
    """A picture or a sound file, told by what it is.

    Attributes:
      name: as `Found.name`.
      seconds: of sound, as its header says; 0 for pictures and for files that cannot be read.
      changed: when its content last was, as the file system says it: nanoseconds, 0 if there is no file.
    """

    path: Path
    name: str
    kind: Kind
    seconds: float = 0.0
    changed: int = 0


def find(inputs: Sequence[str | os.PathLike], out: Path | None = None) -> list[Found]:
    """All files of the inputs, folders with all below them, in order of their names; each under a name once.

    Names that begin with a dot and what is no file (pipes, sockets) are passed over, links to folders are not followed,
    and what lies in `out` is not looked for: an output folder may lie inside of an input folder.
    Raises UserError: an input that does not exist, a folder that is `out` itself or that cannot be read.
    """
    found: dict[tuple[str, str], Found] = {}
    target = os.path.realpath(out) if out else None
    for path in map(Path, inputs):
        if not path.exists():
            raise UserError(f"{path} does not exist; check the path")
        if not path.is_dir():
            rows = [Found(path, path.name, True)]
        elif os.path.realpath(path) == target:
            raise UserError(f"the output folder {out} is also an input: give another one")
        else:
            rows = [Found(file, file.relative_to(path).as_posix(), False) for file in _below(path, target)]
        found.update(((os.path.realpath(row.path), row.name), row) for row in rows)
    return list(found.values())


def _below(folder: Path, left_out: str | None) -> Iterable[Path]:
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(root) / name) != left_out
        )
        paths = (Path(root) / name for name in sorted(names) if not name.startswith("."))
        # A link that leads nowhere stays: its reader will say so.
        yield from (path for path in paths if path.is_file() or not path.exists())


def _unreadable(error: OSError) -> None:
    raise UserError(f"cannot look into {error.filename} ({error.strerror}); leave it out, or get the right to read it")


def media(found: Sequence[Found], kinds: Iterable[Kind]) -> tuple[list[MediaFile], list[Found]]:
    """The pictures and sound files among them, and those passed over: no media, or of a kind not wanted.

    A file that cannot be read is still here if it was given itself, or has the name of a picture or of sound: reading
    it will say what is wrong. Raises UserError: a file that was given itself is of a kind that is not wanted.
    """
    wanted, files, passed = set(kinds), [], []
    for row in found:
        kind, seconds = _look(row.path)
        kind = kind or _SUFFIXES.get(row.path.suffix.lower()) or (min(wanted) if row.given else None)
        if kind in wanted:
            changed = row.path.stat().st_mtime_ns if row.path.exists() else 0
            files.append(MediaFile(row.path, row.name, kind, seconds, changed))
        elif row.given and kind:
            raise UserError(f"{row.path} is a {NAMES[kind]} file, and the codec is for {NAMES[min(wanted)]} files")
        else:
            passed.append(row)
    return files, passed


def _look(path: Path) -> tuple[Kind | None, float]:
    """Kind by content, and seconds of sound."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return None, 0.0
    with contextlib.suppress(Exception), warnings.catch_warnings():  # PIL raises many kinds on broken files
        warnings.simplefilter("ignore")
        with Image.open(path, formats=PICTURE_FORMATS):
            return "image", 0.0
    with contextlib.suppress(soundfile.SoundFileError, RuntimeError, OSError):
        facts = soundfile.info(sound_path(path))
        return "speech", facts.frames / facts.samplerate
    return None, 0.0


def check_distinct(pairs: Iterable[tuple[str, Path]], taken: Iterable[Path]) -> None:
    """UserError if two of the (source, output) have one output, or one is among `taken`, or has too long a name."""
    inputs, sources = {os.path.realpath(path) for path in taken}, dict[Path, str]()
    for source, path in pairs:
        if len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise UserError(f"the result of {source} would have too long a name: give the source a shorter one")
        if os.path.realpath(path) in inputs:
            raise UserError(f"the result of {source} would replace the input {path}: choose another --out")
        if path in sources:
            raise UserError(
                f"{sources[path]} and {source} would both be written to {path}: rename one, or give them in two calls, "
                "each with an --out of its own"
            )
        sources[path] = source


def is_inside(name: str) -> bool:
    """Whether a path with slashes leads to a place below the folder that it starts from."""
    path = PurePosixPath(name)
    safe = not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
    return safe and bool(path.parts)
