"""The published names of the VQGAN's weights (`keys` of `vqgan.ckpt`, SPEC 7.2) and ours, by one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from aromni_jax.codecs import folder, vq
from aromni_jax.codecs.tensor_files import Tensors
from aromni_jax.codecs.vqgan import VQGANConfig
from aromni_jax.errors import UserError

CODEBOOK = "quantize.embedding.weight"
_TRAINING_ONLY = "loss."  # what the discriminator and the perceptual loss leave in a checkpoint of the training
_PUBLISHED_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One array.

    Attributes:
      key: published name. shape: published shape, [out, in, h, w] for a convolution.
      path: slash-joined path in the parameters of `ImageCodec`; there a convolution's kernel is [h, w, in, out].
    """

    key: str
    shape: tuple[int, ...]
    path: str

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        """A published array as we keep it."""
        return np.ascontiguousarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)

    def to_published(self, value: np.ndarray) -> np.ndarray:
        """Inverse of `to_ours`."""
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)


def table(config: VQGANConfig) -> list[Weight]:
    """Every weight of the network and its codebook, from the modules themselves; nothing is computed."""
    abstract = nnx.eval_shape(lambda: nnx.state(config.build(nnx.Rngs(0)), nnx.Param))
    rows = []
    for path, shape in vq.shapes(nnx.to_pure_dict(abstract)).items():
        *modules, leaf = path.split("/")
        published = tuple(shape[axis] for axis in (3, 2, 0, 1)) if len(shape) == 4 else shape
        rows.append(Weight(".".join([*modules, _PUBLISHED_LEAF[leaf]]), published, f"net/{path}"))
    return [*rows, Weight(CODEBOOK, (config.n_embed, config.embed_dim), "codebook")]


def import_params(tensors: Tensors, config: VQGANConfig, config_name: str) -> vq.Params:
    """Parameters of `ImageCodec` from published arrays.

    Raises UserError: arrays missing, left over or of another shape than `config` (from `config_name`) wants, NaN.
    """
    rows = table(config)
    wanted = {row.key: row.shape for row in rows}
    found = {name: shape for name, shape in tensors.shapes.items() if not name.startswith(_TRAINING_ONLY)}
    _check(found, wanted, f"{tensors.where} does not fit {config_name}")
    flat = {}
    for row in rows:
        value = tensors.read(row.key)
        if not np.isfinite(value).all():
            raise UserError(f"{tensors.where}: {row.key} holds NaN or infinite values; fetch the checkpoint again")
        flat[row.path] = row.to_ours(value)
    return folder.nest(flat)


def export_params(params: Mapping[str, Any], config: VQGANConfig) -> dict[str, np.ndarray]:
    """Parameters of `ImageCodec` -> float32 arrays by their published names."""
    flat = folder.flatten(params)
    return {row.key: row.to_published(flat[row.path]) for row in table(config)}


def _check(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], what: str) -> None:
    """UserError that names up to three of the arrays that differ."""
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is not in the network" for name in found if name not in wanted]
    faults += [
        f"{name} is {list(found[name])} in place of {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"{what}: {'; '.join(faults[:3])}{more}")
