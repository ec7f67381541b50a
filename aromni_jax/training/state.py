"""The training state: everything that a step changes and a checkpoint keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aromni_jax import store
from aromni_jax.config import ModelConfig
from aromni_jax.model import Params, init_params

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Attributes:
    step: int32 scalar; batches consumed, so also the index of the next batch.
    params: nested dict of the parameter table.
    opt_state: optax state; its own counter stands still in skipped steps.
    skipped: int32 scalar; steps whose loss or gradient was not finite and changed nothing.
    """

    step: jax.Array
    params: Params
    opt_state: Tree
    skipped: jax.Array


def make_state(config: ModelConfig, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Fresh state; traceable, to be run under `jit` with `out_shardings` so that every leaf is born in its place."""
    params = init_params(config, key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )


def state_shardings(abstract: TrainState, params: Tree, replicated: jax.sharding.Sharding) -> TrainState:
    """Shardings of a state: optimiser moments like their parameter, scalars and factored moments replicated.

    Args:
      abstract: `jax.eval_shape` of `make_state`.
      params: sharding of every parameter.
    """
    shapes, shardings = store.leaf_names(abstract.params), store.leaf_names(params)

    def of_moment(path: tuple[Any, ...], moment: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
        # A moment's path ends with the path of its parameter.
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for parameter, shape in shapes.items():
            if name.endswith("/" + parameter) and shape.shape == moment.shape:
                return shardings[parameter]
        return replicated

    opt_state = jax.tree_util.tree_map_with_path(of_moment, abstract.opt_state)
    fields: dict[str, Any] = {"step": replicated, "params": params, "opt_state": opt_state, "skipped": replicated}
    return TrainState(**fields)
