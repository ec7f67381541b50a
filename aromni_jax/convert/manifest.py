"""`aromni_manifest.json`: what was written into a folder, so that damage is noticed when it is read.

For every file with tensors its size, its SHA-256 and a checksum of each tensor. Tensors are compared as they are read,
so checking costs no second pass; the SHA-256 is for `sha256sum` and for people.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from aromni_jax import store
from aromni_jax.convert.fields import Fields
from aromni_jax.tensorfile import Shaped

MANIFEST = "aromni_manifest.json"
FileEntry = dict[str, Any]


class TensorHolder(Protocol):
    """A file with tensors by name."""

    path: pathlib.Path
    tensors: dict[str, Shaped]

    def read(self, name: str) -> np.ndarray: ...

    def close(self) -> None: ...


class Manifest:
    """The manifest of a folder; an empty one where there is none (the folder is not ours).

    Raises:
      Damaged: a file that it lists is missing or has another size.
      UserError: it cannot be read.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._sums: dict[str, Fields] = {}
        if not (folder / MANIFEST).is_file():
            return
        listed = Fields.read(folder / MANIFEST).object("files")
        for name in listed.values:
            entry, file = listed.object(name), folder / pathlib.PurePath(name).name
            size = entry.integer("bytes", least=0)
            if not file.is_file() or file.stat().st_size != size:
                raise store.Damaged(f"{file}: has not the {size:,} bytes that {MANIFEST} notes; {_ADVICE}")
            self._sums[name] = entry.object("tensors")

    def read(self, holder: TensorHolder, name: str) -> np.ndarray:
        """A tensor, compared with its checksum if that is known.

        Raises:
          Damaged: they differ.
        """
        array = holder.read(name)
        sums = self._sums.get(holder.path.name)
        if sums is not None and name in sums.values and sums.integer(name, least=0) != store.checksum(array):
            raise store.Damaged(f"{holder.path}: tensor {name} is damaged, it is not what {MANIFEST} notes; {_ADVICE}")
        return array


_ADVICE = f"fetch it again, or remove {MANIFEST} if the change was meant"


def entry(file: pathlib.Path, checksums: Mapping[str, int], sha256: str | None = None) -> FileEntry:
    """What a manifest says of one file; it is read for its SHA-256 if that is not known."""
    if sha256 is None:
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": sha256, "tensors": dict(checksums)}


def write_manifest(folder: pathlib.Path, files: Mapping[str, FileEntry], **facts: str) -> None:
    """Write the manifest of a folder, if there are files to list."""
    if files:
        store.write_json(folder / MANIFEST, {**facts, "files": dict(files)})
