"""The training step as a program: described without memory, and lowered for a mesh that need not be there."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aromni_jax.config import RunConfig
from aromni_jax.data import Batch
from aromni_jax.parallel import batch_sharding
from aromni_jax.training.state import TrainState, make_state, state_shardings
from aromni_jax.training.step import make_train_step
from aromni_jax.vocabulary import JointVocabulary


def abstract_state(
    config: RunConfig, vocabulary: JointVocabulary, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct` leaves, each with its sharding."""
    shapes = jax.eval_shape(lambda key: make_state(config, vocabulary, optimizer, key), jax.random.key(0))
    shardings = state_shardings(shapes, config, vocabulary, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def lower_step(
    config: RunConfig,
    vocabulary: JointVocabulary,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    codebook_kc: Any = None,
) -> jax.stages.Lowered:
    """The training step, (state, batch, codebook) -> (state, metrics), with the state donated.

    Args:
      state: of `abstract_state`; the state that comes out is placed as it is.
      codebook_kc: an array or its `jax.ShapeDtypeStruct`; None leaves the perceptual loss out.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(
        make_train_step(config, vocabulary, optimizer),
        donate_argnums=0,
        out_shardings=(placed, NamedSharding(mesh, PartitionSpec())),
    )
    with jax.set_mesh(mesh):
        return step.lower(state, _abstract_batch(config, mesh), codebook_kc)


def _abstract_batch(config: RunConfig, mesh: Mesh) -> Batch:
    shape, rows = (config.data.batch_size, config.data.sequence_length), batch_sharding(mesh)
    dtypes = {field.name: np.int32 for field in dataclasses.fields(Batch)} | {"loss_weights": np.float32}
    fields = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in dtypes.items()}
    return Batch(**fields)
