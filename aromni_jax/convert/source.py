"""What every format looks like from inside: a source of pieces in our layout, and what must travel with them."""

from __future__ import annotations

import abc
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from aromni_jax.config import LoraConfig, ModelConfig
from aromni_jax.convert.layouts import Piece, pieces
from aromni_jax.errors import UserError
from aromni_jax.tensorfile import Shaped
from aromni_jax.vocabulary import JointVocabulary

VQ = "model.vqmodel."  # prefix of the image codec's tensors in Hugging Face checkpoints; they pass through unread


class Source(abc.ABC):
    """An opened checkpoint of any format. Tensors are read one at a time, when asked for.

    Attributes:
      path: of the folder, for messages.
      layout: "aromni" (model folder), "run", "hf", "hf-reference", "meta" or "memory".
      config: of the model.
      vocabulary: the joint vocabulary.
      metadata: JSON; always has "world" and "template" (names, or None).
      assets: files that belong to the model and not to its format (tokenizer, codec, processor), by name.
      warnings: what a user should know; one line each.
      lora: of the adapters that the decoder's tensors are given with (merged); rank 0 = there are none.
    """

    path: pathlib.Path
    layout: str
    config: ModelConfig
    vocabulary: JointVocabulary
    metadata: Mapping[str, Any]
    assets: Mapping[str, pathlib.Path]
    warnings: list[str]
    lora: LoraConfig = LoraConfig()

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

    def read_adapter(self, piece: Piece) -> np.ndarray:
        """One of `layouts.adapter_pieces`, as it was trained."""
        raise KeyError(piece.path)

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


def check_shape(name: str, shaped: Shaped, wanted: tuple[int, ...], file: pathlib.Path, config: str) -> None:
    """UserError if a tensor has not the shape that its config promises, or holds no floating-point numbers."""
    shape, dtype = shaped
    if shape != wanted:
        raise UserError(f"{file}: tensor {name} has shape {list(shape)}; {config} says {list(wanted)}")
    if dtype.name not in ("float32", "bfloat16", "float16", "float64"):
        raise UserError(f"{file}: tensor {name} is of type {dtype.name}; weights must be floating-point numbers")
