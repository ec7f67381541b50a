"""`aromni_extra.safetensors`: what belongs to a model and has no place in the format of its weights."""

from __future__ import annotations

import pathlib
from typing import Any

from aromni_jax.config import ModelConfig
from aromni_jax.convert.layouts import pieces
from aromni_jax.convert.source import Source, check_shape
from aromni_jax.errors import UserError
from aromni_jax.tensorfile import TensorFile, TensorWriter

EXTRA_FILE = "aromni_extra.safetensors"


def read_extra(folder: pathlib.Path, config: ModelConfig) -> TensorFile | None:
    """The opened file, checked to hold what the config's training needs; None if there is none and none is needed.

    Raises:
      UserError: the file, or a tensor in it, is missing or of another shape.
    """
    wanted = pieces(config, training_only=True)
    if not (folder / EXTRA_FILE).is_file():
        if wanted:
            raise UserError(f"{folder / EXTRA_FILE}: is missing; {wanted[0].path} lies in it")
        return None
    extra = TensorFile(folder / EXTRA_FILE)
    for piece in wanted:
        if piece.path not in extra.tensors:
            raise UserError(f"{extra.path}: tensor {piece.path} is missing")
        check_shape(piece.path, extra.tensors[piece.path][0], piece.spec.shape, extra.path, "the model's config")
    return extra


def write_extra(folder: pathlib.Path, source: Source, *, training: bool, vq: bool) -> dict[str, dict[str, Any]]:
    """Write the file if there is anything for it; returns its entry for a manifest.

    Args:
      training: parameters that only training uses (the perceptual projection).
      vq: tensors that only pass through (the VQ model of Hugging Face checkpoints).
    """
    kept = {piece.path: piece for piece in pieces(source.config, training_only=True)} if training else {}
    passengers = source.passengers if vq else {}
    planned = {path: (piece.spec.shape, source.dtype(piece)) for path, piece in kept.items()} | dict(passengers)
    if not planned:
        return {}
    with TensorWriter(folder / EXTRA_FILE, planned, {}) as writer:
        for path, piece in kept.items():
            writer.write(path, source.read(piece))
        for name in passengers:
            writer.write(name, source.read_passenger(name))
    return {EXTRA_FILE: {"bytes": (folder / EXTRA_FILE).stat().st_size, "sha256": writer.sha256}}
