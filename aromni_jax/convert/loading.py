"""Models in memory: loaded from any format, saved as a model folder."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aromni_jax import store
from aromni_jax.config import ModelConfig
from aromni_jax.convert.converting import Dtype, convert, open_source
from aromni_jax.convert.layouts import Piece, pieces
from aromni_jax.convert.model_folder import ModelFolder
from aromni_jax.convert.source import Source
from aromni_jax.errors import UserError
from aromni_jax.model import (
    Params,
    abstract_params,
    check_params,
    flatten,
    forward,
    logits,
    nest,
    parameter_table,
    split_layers,
)
from aromni_jax.tensorfile import Shaped
from aromni_jax.vocabulary import JointVocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A decoder with its parameters.

    Attributes:
      config: shape and numerics.
      vocabulary: the joint vocabulary that its tokens belong to.
      params: nested dict of the parameter table.
      metadata: JSON; what was given to `save_model`, or step and run config of a checkpoint. Always has "world" and
        "template" (names, or None).
    """

    config: ModelConfig
    vocabulary: JointVocabulary
    params: Params
    metadata: Mapping[str, Any]

    def __call__(
        self,
        tokens_bs: jax.Array,
        positions_bs: jax.Array | None = None,
        segment_ids_bs: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """float32 logits [b, s, v] and final hidden states [b, s, d]; jitted, one compilation per shape."""
        return _apply(self.params, self.config, tokens_bs, positions_bs, segment_ids_bs)

    def apart(self) -> Model:
        """The same model for the engine alone, its layers apart (`model.split_layers`); this one is given up for it."""
        return dataclasses.replace(self, params=split_layers(self.params, consume=True))


@functools.partial(jax.jit, static_argnums=1)
def _apply(
    params: Params,
    config: ModelConfig,
    tokens_bs: jax.Array,
    positions_bs: jax.Array | None,
    segment_ids_bs: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    hidden_bsd, _ = forward(params, config, tokens_bs, positions_bs, segment_ids_bs)
    return logits(params, config, hidden_bsd), hidden_bsd


def load_model(path: str | os.PathLike[str], vocabulary: JointVocabulary | None = None) -> Model:
    """Load a model of any format: a model folder, a run or one of its checkpoints, a Hugging Face folder in either
    layout, a Meta folder (`open_source` says how each is known).

    Checksums are compared where the format has them. The parameters land on the first device, in the config's dtype.

    Args:
      vocabulary: if given, the one that the model must have been made with.

    Raises:
      UserError: nothing there, not a checkpoint, damaged, of another vocabulary or of an unknown layout version.
    """
    with open_source(path, vocabulary) as source:
        params = _restored(source) if isinstance(source, ModelFolder) and source.plain else _stacked(source)
        for line in source.warnings:
            warnings.warn(line, stacklevel=2)
        return Model(source.config, source.vocabulary, params, source.metadata)


def save_model(
    path: str | os.PathLike[str],
    params: Params,
    config: ModelConfig,
    vocabulary: JointVocabulary,
    metadata: Mapping[str, Any] | None = None,
    *,
    dtype: Dtype = "float32",
) -> None:
    """Write a model folder: `params/` (Orbax), `aromni.json`. It appears whole or not at all.

    Args:
      metadata: JSON types; "world" (codecs) and "template" tell `load_model`'s users how to talk to the model.
      dtype: of the stored arrays, and of the parameters when they are loaded again.

    Raises:
      UserError: the folder exists, the parameters are not those of the config, or it cannot be written.
    """
    check_params(params, config, "params")
    convert(_Memory(params, config, vocabulary, metadata or {}), path, "orbax", dtype=dtype)


class _Memory(Source):
    """Parameters that are in memory already."""

    layout = "memory"

    def __init__(
        self, params: Params, config: ModelConfig, vocabulary: JointVocabulary, metadata: Mapping[str, Any]
    ) -> None:
        self.path, self.assets, self.warnings = pathlib.Path("params"), {}, []
        self.config, self.vocabulary, self.metadata = config, vocabulary, metadata
        self._arrays = flatten(params)
        self._held: tuple[str, np.ndarray] = ("", np.empty(0))

    def read(self, piece: Piece) -> np.ndarray:
        if self._held[0] != piece.path:  # from the device once, not once per layer
            self._held = (piece.path, np.asarray(self._arrays[piece.path]))
        array = self._held[1]
        return array if piece.layer is None else array[piece.layer]

    def dtype(self, piece: Piece) -> np.dtype:
        return np.dtype(self._arrays[piece.path].dtype)

    @property
    def passengers(self) -> Mapping[str, Shaped]:
        return {}

    def read_passenger(self, name: str) -> np.ndarray:
        raise KeyError(name)


def _restored(source: ModelFolder) -> Params:
    """By Orbax, in parallel, straight to the device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract_params(source.config)
    )
    params: Params = store.read_arrays(source.arrays, abstract, source.checksums)
    return params


def _stacked(source: Source) -> Params:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = abstract_params(source.config)
    return read_params(source, source.config, jax.tree.map(lambda leaf: leaf.update(sharding=place), wanted))


def read_params(source: Source, config: ModelConfig, like: Params) -> Params:
    """Parameters of a source, one after the other, each cast and put where `like` has it.

    Args:
      config: of the model that they are for; only what changes no shape may differ (dtypes, backend, norm order, ...).
      like: arrays, or shapes with shardings and dtypes. A training-only parameter that the source lacks is left out.

    Raises:
      UserError: a shape differs, naming the config key; the source is damaged.
    """
    for key in _SHAPES:
        ours, theirs = getattr(config, key), getattr(source.config, key)
        if ours != theirs:
            raise UserError(f"{source.path}: model.{key} is {theirs} there, {ours} here")
    wanted = flatten(like)
    found: dict[str, jax.Array] = {}
    grouped = itertools.groupby(_by_parameter(source, config), key=lambda piece: piece.path)
    for path, group in grouped:
        leaf = wanted[path]
        array = np.empty(leaf.shape, leaf.dtype)
        for piece in group:
            array[... if piece.layer is None else piece.layer] = source.read(piece)
        found[path] = jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)
    source.check()
    return nest(found)


# Fields of a model config that its arrays' shapes follow from, but for the perceptual projection, which may be new.
_SHAPES = ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "qk_norm_groups")


def _by_parameter(source: Source, config: ModelConfig) -> list[Piece]:
    training = pieces(config, training_only=True) if config.perceptual_dim == source.config.perceptual_dim else []
    order = {path: number for number, path in enumerate(parameter_table(config))}
    return sorted([*(piece for piece, _ in source.planned()), *training], key=lambda piece: order[piece.path])
