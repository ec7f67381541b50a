"""The engine's two programs, prefill and a chunk of decoding steps, compiled for a TPU topology."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aromni_jax.compile.chips import Target, needed_gib
from aromni_jax.compile.hlo import Program
from aromni_jax.config import MeshConfig, ModelConfig
from aromni_jax.decoding import Grammar, Limits
from aromni_jax.decoding import guidance as guide
from aromni_jax.decoding.loop import Inputs, decode, prefill
from aromni_jax.decoding.placement import Placement
from aromni_jax.decoding.sampling import Policies, row_keys
from aromni_jax.model import KVCache, abstract_params, parameter_table
from aromni_jax.parallel import DEFAULT_RULES, make_mesh, param_shardings
from aromni_jax.vocabulary import JointVocabulary


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is decoded.

    Attributes:
      batch: rows; length: slots of the cache; prompt: tokens that prefill reads of each row; steps: of a chunk.
      cache_dtype: as in `Engine`.
    """

    batch: int = 8
    length: int = 2048
    prompt: int = 1024
    steps: int = 32
    cache_dtype: str | None = None


def compile_decoding(
    target: Target, config: ModelConfig, vocabulary: JointVocabulary, mesh: MeshConfig, shape: Shape
) -> dict[str, Any]:
    """Figures per chip of both programs, as JSON types; see `markdown` for what they mean.

    A program that does not fit has "fits": False and the compiler's words, and no more.

    Raises:
      UserError: a mesh that does not fit the topology, or over which the cache cannot be split.
    """
    devices = make_mesh(mesh, target.devices)
    Placement(config, devices, shape.cache_dtype)  # refuses what the engine refuses
    params, cache, others = _arguments(config, vocabulary, devices, shape)
    figures: dict[str, Any] = {
        "topology": target.name,
        "flags": list(target.flags),
        "chips": len(target.devices),
        "mesh": dict(devices.shape),
        **dataclasses.asdict(shape),
        "cache_dtype": shape.cache_dtype or config.compute_dtype,
        "floor": _floor(params, cache),
    }
    with jax.set_mesh(devices):
        lowered = prefill.lower(params, cache, *others, config=config, grammar=Grammar(vocabulary), fresh=True)
        figures["prefill"], read = _compiled(lowered, target, trips=1)
        if read is None:
            return figures
        carry = _placed(lowered.out_info, read.output_shardings)
        del read
        lowered_chunk = decode.lower(
            params, carry, _inputs(vocabulary, devices, shape.batch),
            _everywhere(jax.ShapeDtypeStruct((), jnp.int32), devices),
            config=config, grammar=Grammar(vocabulary), steps=shape.steps, guided=False,
        )  # fmt: skip
        figures["decode"], chunk = _compiled(lowered_chunk, target, trips=shape.steps)
    if chunk is not None:
        figures["decode"] |= _per_step(chunk.as_text(), figures["floor"], target, shape)
    return figures


def _per_step(text: str, floor: dict[str, float], target: Target, shape: Shape) -> dict[str, float]:
    """Of one decoding step, the chunk's own work shared out among its steps."""
    program = Program(text, shape.steps)
    traffic = program.traffic()
    moved = traffic.bytes / shape.steps
    seconds = moved / target.chip.bandwidth
    return {
        "bytes_per_step": moved,
        "of_it_between_chunks": program.outside_loops().bytes / shape.steps,
        "over_floor": moved / sum(floor.values()),
        "step_ms_by_bandwidth": 1000 * seconds,
        "tokens_per_second_by_bandwidth": shape.batch / seconds,
        "step_ms_by_compiler": 1000 * traffic.cycles / shape.steps / target.chip.clock,
    }


def _compiled(lowered: jax.stages.Lowered, target: Target, trips: int) -> tuple[dict[str, Any], Any]:
    """Memory per chip in bytes, whether it fits, seconds of compilation; and the program, None if it does not fit."""
    started = time.perf_counter()
    try:
        compiled = target.compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"fits": False, "needed_gib": needed_gib(str(error))}, None
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None, "the compiler tells"
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    traffic = Program(text, trips).traffic()
    figures = {
        "fits": peak <= target.chip.memory,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "peak": peak,
        "bytes_moved": traffic.bytes,
        "ms_by_bandwidth": 1000 * traffic.bytes / target.chip.bandwidth,
        "ms_by_compiler": 1000 * traffic.cycles / target.chip.clock,
        "seconds_of_compilation": time.perf_counter() - started,
    }
    return figures, compiled


def _arguments(
    config: ModelConfig, vocabulary: JointVocabulary, mesh: Mesh, shape: Shape
) -> tuple[Any, KVCache, list[Any]]:
    """What `prefill` takes, without memory: parameters, cache, and the others in order."""
    params = _split_layers(_placed(abstract_params(config), param_shardings(parameter_table(config), mesh)))
    empty = jax.eval_shape(lambda: KVCache.create(config, shape.batch, shape.length, shape.cache_dtype))

    def split(array: Any, *axes: str | None) -> Any:
        spec = DEFAULT_RULES.spec(*axes, shape=array.shape, mesh=mesh)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    cache = dataclasses.replace(empty.split(split), index=split(empty.index))
    b = shape.batch
    rules = Grammar(vocabulary).rules([Limits(512)] * b)
    given = [
        jax.ShapeDtypeStruct((b, vocabulary.size), bool),
        jax.ShapeDtypeStruct((b, shape.prompt), jnp.int32),
        *[jax.ShapeDtypeStruct((b,), jnp.int32)] * 2,
        rules,
        jax.ShapeDtypeStruct((b,), bool),
    ]
    return params, cache, _everywhere(given, mesh)


def _inputs(vocabulary: JointVocabulary, mesh: Mesh, batch: int) -> Inputs:
    rows_b: Any = jax.ShapeDtypeStruct((batch,), jnp.int32)
    weights_b3: Any = jax.ShapeDtypeStruct((batch, 3), jnp.float32)
    idle_b: Any = jax.ShapeDtypeStruct((batch,), bool)
    inputs = Inputs(
        rules=jax.eval_shape(lambda: Grammar(vocabulary).rules([Limits(512)] * batch)),
        policies=jax.eval_shape(lambda: Policies.stack([{}] * batch)),
        keys_b=jax.eval_shape(lambda: row_keys([0] * batch)),
        idle_b=idle_b,
        branches=guide.Branches(rows_b, rows_b, rows_b, rows_b, rows_b, weights_b3),
        prompt_slots_r=rows_b,
    )
    return _everywhere(inputs, mesh)


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=whole), tree)


def _placed(tree: Any, shardings: Any) -> Any:
    def place(array: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(place, tree, shardings)


def _split_layers(params: Any) -> Any:
    """What `model.split_layers` makes of parameters, without memory."""

    def one(array: Any) -> Any:
        sharding = NamedSharding(array.sharding.mesh, PartitionSpec(*array.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(array.shape[1:], array.dtype, sharding=sharding)

    layers = params["layers"]
    return {**params, "layers": (jax.tree.map(one, layers),) * jax.tree.leaves(layers)[0].shape[0]}


def _floor(params: Any, cache: KVCache) -> dict[str, float]:
    """Bytes per chip that every step has to read: all weights but the embedding table, and the whole cache."""

    def size(array: Any) -> float:
        return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize

    weights = sum(map(size, jax.tree.leaves({**params, "embedder": None})))
    return {"weights": weights, "cache": sum(map(size, jax.tree.leaves(cache.layers)))}
