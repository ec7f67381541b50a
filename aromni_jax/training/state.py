"""The training state: everything that a step changes and a checkpoint keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aromni_jax.config import RunConfig
from aromni_jax.model import Params, flatten, init_params, nest, parameter_table, trained
from aromni_jax.parallel import param_shardings
from aromni_jax.vocabulary import JointVocabulary

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Attributes:
    step: int32 scalar; batches consumed, so also the index of the next batch.
    params: nested dict of the parameter table.
    opt_state: optax state of what is trained; its own counter stands still in skipped steps.
    skipped: int32 scalar; steps whose loss or gradient was not finite and changed nothing.
    average: float32 moving average of the parameters that are trained, whole ones; empty if none is kept.
    """

    step: jax.Array
    params: Params
    opt_state: Tree
    skipped: jax.Array
    average: Params = dataclasses.field(default_factory=dict)

    @property
    def weights(self) -> Params:
        """What to use the model with: the parameters, or their average where one is kept."""
        params = flatten(self.params)
        averaged = {path: leaf.astype(params[path].dtype) for path, leaf in flatten(self.average).items()}
        return nest(params | averaged)


def make_state(
    config: RunConfig, vocabulary: JointVocabulary, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """Fresh state; traceable, to be run under `jit` with `out_shardings` so that every leaf is born in its place."""
    params = init_params(config.model, key)
    parts = trained(config, vocabulary)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(parts.take(params)),
        skipped=jnp.zeros((), jnp.int32),
        average=_start_of_average({path: flatten(params)[path] for path in parts.table if config.train.ema_decay}),
    )


def beginning_with(state: TrainState, params: Params) -> TrainState:
    """A fresh state with other parameters, placed as its own."""
    flat = flatten(params)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state.average)
    average = jax.jit(_start_of_average, out_shardings=placed)({path: flat[path] for path in flatten(state.average)})
    return dataclasses.replace(state, params=params, average=average)


def _start_of_average(params: dict[str, jax.Array]) -> Params:
    # A copy: the step gives up the memory of both, which must not be the same.
    return nest({path: jnp.array(leaf, jnp.float32, copy=True) for path, leaf in params.items()})


def state_shardings(abstract: TrainState, config: RunConfig, vocabulary: JointVocabulary, mesh: Mesh) -> TrainState:
    """Shardings of a state: moments and averages like their parameter, scalars and factored moments replicated.

    Args:
      abstract: `jax.eval_shape` of `make_state`.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    parts = trained(config, vocabulary).table
    params, moments = param_shardings(parameter_table(config.model), mesh), flatten(param_shardings(parts, mesh))

    def of_moment(path: tuple[Any, ...], moment: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
        # A moment's path ends with the path of its parameter.
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for parameter, spec in parts.items():
            if name.endswith("/" + parameter) and spec.shape == moment.shape:
                return moments[parameter]
        return replicated

    opt_state = jax.tree_util.tree_map_with_path(of_moment, abstract.opt_state)
    average = nest({path: flatten(params)[path] for path in flatten(abstract.average)})
    fields: dict[str, Any] = {"step": replicated, "params": params, "opt_state": opt_state, "skipped": replicated}
    return TrainState(**fields, average=average)
