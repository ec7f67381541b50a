"""The training step compiled for a TPU topology, and the search for the settings that train fastest on it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from aromni_jax.compile.chips import Target, needed_gib
from aromni_jax.compile.hlo import Program
from aromni_jax.compile.work import collectives, kernel_flops, matmul_flops
from aromni_jax.config import DataConfig, MeshConfig, ModelConfig, Remat, RunConfig
from aromni_jax.errors import UserError
from aromni_jax.model import ParamSpec, flops_per_token, parameter_counts, trained
from aromni_jax.parallel import make_mesh
from aromni_jax.training import abstract_state, lower_step, make_optimizer
from aromni_jax.vocabulary import JointVocabulary

KERNEL_SHARE = 0.5  # of the chip's peak at which attention kernels are taken to run: the compiler has no time for them
_WIDTH = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting.

    Attributes:
      rows: of a batch, per chip.
      remat: see `ModelConfig.remat`.
      mesh: over the chips of the topology.
    """

    rows: int
    remat: Remat
    mesh: MeshConfig


def compile_training(
    target: Target, model: ModelConfig, vocabulary: JointVocabulary, trial: Trial, length: int
) -> dict[str, Any]:
    """Figures per chip of one AdamW step with the perceptual loss, as JSON types; see `training_markdown`.

    Args:
      length: tokens of a row.

    Returns:
      "fits": False and what the compiler says is needed, and no more, if it refuses.

    Raises:
      UserError: a mesh that does not fit the topology, rows that do not fit the mesh or the model.
    """
    chips = len(target.devices)
    mesh = make_mesh(trial.mesh, target.devices)
    model = dataclasses.replace(model, remat=trial.remat, param_dtype="float32")
    if length > model.max_positions:
        raise UserError(f"rows of {length} tokens are longer than the {model.max_positions} positions of the model")
    if length % mesh.shape["context"]:
        raise UserError(f"rows of {length} tokens cannot be split over {mesh.shape['context']} chips along context")
    config = RunConfig(model=model, data=DataConfig(sequence_length=length, batch_size=trial.rows * chips))
    row: dict[str, Any] = {
        "topology": target.name,
        "flags": list(target.flags),
        "chips": chips,
        "mesh": dict(mesh.shape),
        "rows": trial.rows,
        "length": length,
        "remat": trial.remat,
        "lora_rank": model.lora.rank,
    }
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    parts = trained(config, vocabulary)
    codebook_kc: Any = None
    if model.perceptual_dim:
        whole = NamedSharding(mesh, PartitionSpec())
        shape = (len(vocabulary.image), model.perceptual_dim)
        codebook_kc = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
    started = time.perf_counter()
    state = abstract_state(config, vocabulary, optimizer, mesh)
    lowered = lower_step(config, vocabulary, optimizer, state, mesh, codebook_kc)
    try:
        compiled = target.compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"fits": False, "needed_gib": needed_gib(str(error))}
    row["seconds_of_compilation"] = time.perf_counter() - started
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None, "the compiler tells"
    row |= {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    row["fits"] = memory.peak_memory_in_bytes + memory.argument_size_in_bytes <= target.chip.memory
    return row | _figures(Program(text, trips=1), model, parts.table, target, trial, mesh.shape["fsdp"], length)


def _figures(
    program: Program,
    model: ModelConfig,
    table: Mapping[str, ParamSpec],
    target: Target,
    trial: Trial,
    fsdp: int,
    length: int,
) -> dict[str, Any]:
    chip, tokens = target.chip, trial.rows * length
    per_token = flops_per_token(model, length, trained=table)
    analytic, policy = per_token * tokens, policy_flops(model, length, table)
    matmuls, kernels, sent = matmul_flops(program), kernel_flops(program), collectives(program)
    minimum = fsdp_minimum(model, fsdp, table)
    compiler = program.traffic().cycles / chip.clock
    step = compiler + kernels / (KERNEL_SHARE * chip.flops)
    return {
        "flops": {"model": analytic, "matmuls": matmuls, "kernels": kernels},
        "flops_over_model": (matmuls + kernels) / analytic,
        "policy_over_model": policy / per_token,
        "matmuls_over_policy": matmuls / ((policy - attention_flops(model, length)) * tokens),
        "collectives": sent,
        "collective_bytes": sum(sent.values()),
        "fsdp_minimum": minimum,
        "over_minimum": sum(sent.values()) / minimum if minimum else None,
        "compiler_s": compiler,
        "step_s": step,
        "links_s": sum(sent.values()) / chip.links,
        # Only a TPU's compiler estimates cycles.
        "mfu": analytic / (chip.flops * step) if step else 0.0,
        "tokens_per_second": tokens / step if step else 0.0,
    }


def fsdp_minimum(model: ModelConfig, fsdp: int, table: Mapping[str, ParamSpec] | None = None) -> float:
    """Bytes that a chip has to receive in a step when every parameter is split over `fsdp` chips.

    All of them gathered forward and again backward (the embedding table forward only), and the gradients of those that
    are trained (`table`; None = all) scattered, in the dtype of computation.
    """
    counts = parameter_counts(model)
    own = counts["total"] if table is None else sum(math.prod(spec.shape) for spec in table.values())
    passes = 2 * counts["total"] - counts["embedder"] + own
    return passes * _WIDTH[model.compute_dtype] * (fsdp - 1) / fsdp


def policy_flops(model: ModelConfig, length: int, table: Mapping[str, ParamSpec] | None = None) -> float:
    """Training FLOPs per token with what the remat policy computes again: "full" and "offload" a whole forward pass of
    the layers, "qkv" all but three of its products, "dots" attention; the tiled cross entropy computes its scores again
    under every policy.
    """
    counts, forward = parameter_counts(model), flops_per_token(model, length, training=False)
    head = 2 * counts["head"]
    products = 2 * (counts["attention"] + counts["ffn"] + counts.get("adapters", 0))
    qkv = 2 * model.layers * model.dim * (model.heads + 2 * model.kv_heads) * model.head_dim
    kept = {"full": 0.0, "offload": 0.0, "qkv": qkv, "dots": products, "none": forward - head}
    again = forward - head - kept[model.remat]
    tiled = 0 < model.logits_tile < model.vocab_size
    return flops_per_token(model, length, trained=table) + again + (head if tiled else 0)


def attention_flops(model: ModelConfig, length: int) -> float:
    """Of `policy_flops`, what scores and mixes of attention are: the part that kernels do on a TPU."""
    forward = 2 * model.layers * model.heads * model.head_dim * (length + 1)
    return forward * (3 if model.remat == "none" else 4)


def search(
    target: Target,
    rows: Sequence[int],
    remats: Sequence[Any],
    meshes: Sequence[MeshConfig],
    compiled: Callable[[Trial], dict[str, Any]],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Figures of every trial, those that fit first, the most tokens per second first; Ctrl-C ends it with what is done.

    Larger batches are not tried where a smaller one does not fit.
    """
    done: list[dict[str, Any]] = []
    full: set[tuple[Any, MeshConfig]] = set()
    trials = list(_trials(rows, remats, meshes))
    started = time.monotonic()
    try:
        for number, trial in enumerate(trials, 1):
            if (trial.remat, trial.mesh) not in full:
                done.append(compiled(trial))
                if not done[-1]["fits"]:
                    full.add((trial.remat, trial.mesh))
            left = sum((later.remat, later.mesh) not in full for later in trials[number:])
            eta = (time.monotonic() - started) / max(1, len(done)) * left
            say(f"{target.name}: {number} of {len(trials)} tried, about {eta / 60:.0f} min left")
    except KeyboardInterrupt:
        say(f"{target.name}: stopped, {len(done)} of {len(trials)} compiled")
    return sorted(done, key=lambda row: (not row["fits"], -row.get("tokens_per_second", 0.0)))


def _trials(rows: Sequence[int], remats: Sequence[Any], meshes: Sequence[MeshConfig]) -> Iterator[Trial]:
    for mesh, remat, number in itertools.product(meshes, remats, sorted(rows)):
        yield Trial(number, remat, mesh)
