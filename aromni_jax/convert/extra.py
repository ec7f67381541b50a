"""`aromni_extra.safetensors`: what belongs to a model and has no place in the format of its weights."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from aromni_jax import store
from aromni_jax.config import ModelConfig
from aromni_jax.convert.layouts import Piece, pieces
from aromni_jax.convert.manifest import FileEntry, Manifest, entry
from aromni_jax.convert.source import VQ, Source, check_shape
from aromni_jax.errors import UserError
from aromni_jax.tensorfile import Shaped, TensorFile, TensorWriter

EXTRA_FILE = "aromni_extra.safetensors"


class Extra:
    """The opened file, or nothing where a folder has none.

    Raises:
      UserError: the file is broken, or holds a tensor that is neither training's nor the image codec's.
    """

    def __init__(self, folder: pathlib.Path, manifest: Manifest) -> None:
        file = folder / EXTRA_FILE
        self._file = TensorFile(file) if file.is_file() else None
        self._manifest = manifest
        self.tensors: Mapping[str, Shaped] = self._file.tensors if self._file else {}

    def check(self, config: ModelConfig) -> None:
        """UserError if a training-only parameter of the config is missing or has another shape, or one is unknown."""
        if self._file is None:
            return
        wanted = {piece.path: piece for piece in pieces(config, training_only=True)}
        for path, piece in wanted.items():
            if path not in self.tensors:
                raise UserError(f"{self._file.path}: tensor {path} is missing")
            check_shape(path, self.tensors[path], piece.spec.shape, self._file.path, "the model's config")
        for name in self.tensors:
            if name not in wanted and not name.startswith(VQ):
                raise UserError(f"{self._file.path}: tensor {name} is unknown")

    @property
    def passengers(self) -> Mapping[str, Shaped]:
        """Tensors of the VQ model."""
        return {name: shaped for name, shaped in self.tensors.items() if name.startswith(VQ)}

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        assert self._file is not None
        return self._manifest.read(self._file, name)

    def close(self) -> None:
        """No reading after this."""
        if self._file:
            self._file.close()


def write_extra(folder: pathlib.Path, source: Source, *, training: bool, vq: bool) -> dict[str, FileEntry]:
    """Write the file if there is anything for it; returns its entry for the manifest.

    Args:
      training: parameters that only training uses (the perceptual projection).
      vq: tensors that only pass through (the VQ model of Hugging Face checkpoints).
    """
    kept: dict[str, Piece | None] = dict.fromkeys(source.passengers) if vq else {}
    if training:
        kept |= {piece.path: piece for piece in pieces(source.config, training_only=True)}
    if not kept:
        return {}
    planned = {n: source.passengers[n] if p is None else (p.spec.shape, source.dtype(p)) for n, p in kept.items()}
    sums: dict[str, int] = {}
    with TensorWriter(folder / EXTRA_FILE, planned, {}) as writer:
        for name, piece in kept.items():
            array = source.read_passenger(name) if piece is None else source.read(piece)
            writer.write(name, array)
            sums[name] = store.checksum(array)
    return {EXTRA_FILE: entry(folder / EXTRA_FILE, sums, writer.sha256)}
