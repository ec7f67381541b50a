"""What every format looks like from inside: a source of pieces in our layout, and what must travel with them."""

from __future__ import annotations

import abc
import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from aromni_jax.config import ModelConfig, RunConfig
from aromni_jax.convert.layouts import Piece, pieces
from aromni_jax.errors import UserError
from aromni_jax.tensorfile import Shaped
from aromni_jax.vocabulary import JointVocabulary

VQ = "model.vqmodel."  # prefix of the image codec's tensors in Hugging Face checkpoints; they pass through unread
# What the files of other formats cannot say stands under this key in their JSON.
OURS = "aromni"


class Source(abc.ABC):
    """An opened checkpoint of any format. Tensors are read one at a time, when asked for.

    Attributes:
      path: of the folder, for messages.
      layout: "aromni" (model folder), "run", "hf", "hf-reference", "meta" or "memory".
      config: of the model; its dtypes are those that the arrays are stored in.
      vocabulary: the joint vocabulary.
      metadata: JSON; always has "world" and "template" (names, or None).
      assets: files that belong to the model and not to its format (tokenizer, codec, processor), by name.
      warnings: what a user should know; one line each.
    """

    path: pathlib.Path
    layout: str
    config: ModelConfig
    vocabulary: JointVocabulary
    metadata: Mapping[str, Any]
    assets: Mapping[str, pathlib.Path]
    warnings: list[str]

    @abc.abstractmethod
    def read(self, piece: Piece) -> np.ndarray:
        """One layer of a parameter in our layout and its stored dtype."""

    @abc.abstractmethod
    def dtype(self, piece: Piece) -> np.dtype:
        """Stored dtype of a piece."""

    @property
    @abc.abstractmethod
    def passengers(self) -> Mapping[str, Shaped]:
        """Tensors that are no parameters of the decoder but travel with it (the VQ model of HF checkpoints)."""

    @abc.abstractmethod
    def read_passenger(self, name: str) -> np.ndarray:
        """One of `passengers`."""

    def check(self) -> None:  # noqa: B027
        """Raise Damaged if what has been read is not what was written. To be called when everything is read."""

    def close(self) -> None:  # noqa: B027
        """No reading after this."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bytes(self, dtype: str | None = None) -> int:
        """Size of the decoder's tensors as stored, or in another dtype."""
        itemsize = np.dtype(jnp.dtype(dtype)).itemsize if dtype else None
        return sum(math.prod(piece.spec.shape) * (itemsize or stored.itemsize) for piece, stored in self.planned())

    def planned(self) -> list[tuple[Piece, np.dtype]]:
        """Every piece of the decoder, without what is for training only, with its stored dtype."""
        return [(piece, self.dtype(piece)) for piece in pieces(self.config)]


def with_ours(
    config: Mapping[str, Any], ours: Mapping[str, Any], dtype: np.dtype, qk_norm_groups: int, where: str
) -> ModelConfig:
    """A model config from what a foreign file says (`config`) and what we once noted beside it (`ours`).

    Args:
      dtype, qk_norm_groups: as the tensors have them; a note on the groups is followed, if there is one.

    Raises:
      UserError: naming the file and the key.
    """
    held = "bfloat16" if dtype.name == "bfloat16" else "float32"
    found = {"compute_dtype": held, "qk_norm_groups": qk_norm_groups}
    values = {**found, **ours, "param_dtype": held, **config}
    try:
        return RunConfig.from_dict({"model": values}).model
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def ours(config: ModelConfig) -> dict[str, Any]:
    """The part of a model config that foreign files have no place for."""
    keys = (
        "qk_norm_eps", "qk_norm_groups", "compute_dtype", "attention", "remat", "scan_layers", "perceptual_dim",
        "logits_tile",
    )  # fmt: skip
    return {key: dataclasses.asdict(config)[key] for key in keys}


def own_vocabulary(
    described: Mapping[str, Any], size: int, given: JointVocabulary | None, where: pathlib.Path
) -> JointVocabulary:
    """The vocabulary of a foreign checkpoint: noted beside it, given by the caller, or the official layout by its size.

    Raises:
      UserError: none of these, or they disagree.
    """
    noted = JointVocabulary.from_dict(described) if described else None
    if noted and given and noted.fingerprint() != given.fingerprint():
        raise UserError(f"{where}: made with vocabulary {noted.fingerprint()}, but {given.fingerprint()} is in use")
    found = noted or given
    if found is None:
        found = JointVocabulary.aromni()
        if size != found.size:
            raise UserError(
                f"{where}: has {size} ids; the official layout has {found.size}: say which vocabulary it is"
            )
    if found.size != size:
        raise UserError(f"{where}: has {size} ids, its vocabulary {found.size}")
    return found


def check_shape(name: str, shape: tuple[int, ...], wanted: tuple[int, ...], file: pathlib.Path, config: str) -> None:
    """UserError if a tensor has not the shape that its config promises."""
    if shape != wanted:
        raise UserError(f"{file}: tensor {name} has shape {list(shape)}; {config} says {list(wanted)}")
