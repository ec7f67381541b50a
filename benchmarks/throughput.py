"""Training throughput on this CPU: aromni_jax beside the same models and losses in PyTorch, in one run.

Two cases: the demo's model on the demo's data, and the config of the reference's own figures on full rows. The first
has two layouts of the same examples: packed rows (ours) and one example per row, padded to the longest of the batch
(the reference's, SPEC 2.1). Both programs take every batch of each. Before anything is timed they must agree on the
loss and on the gradient norm of every batch; then they take turns.

    python benchmarks/throughput.py --data DIR --out benchmarks/results/throughput.json
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from layouts import padded_batches, shape_name, slots, useful
from machine import BUSY, CpuUse, hardware, positive, spread, threads, versions
from output import Say, clocked, write
from reference_case import VOCABULARY, full_rows, reference_config

from aromni_jax import data
from aromni_jax.cli.train import codebook
from aromni_jax.config import MeshConfig, RunConfig, load_config
from aromni_jax.data import Batch
from aromni_jax.errors import UserError
from aromni_jax.model import Params, parameter_counts
from aromni_jax.parallel import batch_sharding, make_mesh
from aromni_jax.training import make_optimizer, make_state, make_train_step
from aromni_jax.training.metrics import summary
from aromni_jax.vocabulary import JointVocabulary

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "numbers.py"
LOSS_TOLERANCE = 1e-4  # absolute, nats
NORM_TOLERANCE = 1e-3  # of the gradient norm, relative
PADDED_ROWS = 16  # the reference pads 2 examples on each of 8 devices to one length
SAMPLED = 64  # packed batches whose examples the padded ones stand for
PACKAGES = ("aromni_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")


class Side(Protocol):
    """One of the programs that are compared."""

    name: str

    def restart(self) -> None:
        """Back to the starting weights, with a fresh optimiser."""

    def step(self, batch: Batch) -> None:
        """One optimiser step; need not be done on return."""

    def outcome(self) -> tuple[float, float]:
        """Wait for the steps; loss and gradient norm of the last one."""


class Ours:
    """`training.make_train_step`, as the training loop runs it, on one CPU device; metrics are computed all along."""

    name = "aromni_jax"

    def __init__(self, config: RunConfig, vocabulary: JointVocabulary, codebook_kc: np.ndarray | None) -> None:
        self._config = config
        self._mesh = make_mesh(MeshConfig(fsdp=1), jax.devices("cpu")[:1])
        self._rows, whole = batch_sharding(self._mesh), NamedSharding(self._mesh, PartitionSpec())
        self._codebook_kc = None if codebook_kc is None else jax.device_put(codebook_kc, whole)
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        self._make = jax.jit(functools.partial(make_state, config, vocabulary, optimizer), out_shardings=whole)
        train_step = make_train_step(config, vocabulary, optimizer)
        self._step = jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole))
        self.restart()

    def restart(self) -> None:
        self._state = self._make(jax.random.key(self._config.train.seed))

    @property
    def params(self) -> Params:
        """Weights as they are now, on the host."""
        return jax.device_get(self._state.params)

    @property
    def programs(self) -> int:
        """How often the step was compiled; once per shape of batch."""
        return self._step._cache_size()

    def step(self, batch: Batch) -> None:
        with jax.set_mesh(self._mesh):
            self._state, self._metrics = self._step(self._state, jax.device_put(batch, self._rows), self._codebook_kc)

    def outcome(self) -> tuple[float, float]:
        jax.block_until_ready(self._state)
        values = summary(jax.device_get(self._metrics), self._config.loss.perceptual_weight)
        return values["loss"], values["grad_norm"]


def benchmark_config(data_path: str) -> RunConfig:
    """configs/numbers.py:demo with AdamW at a constant learning rate, so that both sides take the same steps."""
    optimizer = {"name": "adamw", "peak_lr": 1e-3, "warmup_steps": 0, "decay": "constant"}
    overrides = [f"optimizer.{name}={value}" for name, value in optimizer.items()]
    return load_config(f"{CONFIG}:demo", [f'data.path="{data_path}"', *overrides])


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with the batches it takes, by layout."""

    config: RunConfig
    vocabulary: JointVocabulary
    layouts: dict[str, list[Batch]]


def demo_case(data_path: str, batch_count: int) -> Case:
    """The demo's model on packed and on padded rows of the demo's data."""
    config = benchmark_config(data_path)
    vocabulary = data.read_manifest(data_path).vocabulary
    if vocabulary.size != config.model.vocab_size:
        raise UserError(f"{data_path}: {vocabulary.size} ids, but {CONFIG.name} has {config.model.vocab_size}")
    stream = data.batches(config.data, config.loss, vocabulary)
    packed = [next(stream) for _ in range(max(SAMPLED, batch_count))]
    return Case(
        config,
        vocabulary,
        {
            "packed rows": packed[:batch_count],
            "padded": padded_batches(packed, PADDED_ROWS, batch_count, vocabulary.pad),
        },
    )


def reference_case(batch_count: int) -> Case:
    """The model of the reference's own figures, on full rows."""
    config = reference_config()
    return Case(config, VOCABULARY, {"reference's own config, full rows": full_rows(config, VOCABULARY, batch_count)})


def both_sides(config: RunConfig, vocabulary: JointVocabulary, codebook_kc: np.ndarray | None) -> tuple[Ours, Side]:
    """Ours and the peer, with the same starting weights; UserError without PyTorch."""
    try:
        import torch
        from torch_peer import TorchPeer
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError("the peer needs PyTorch: pip install -e '.[torch]', or run `make bench`") from None
    torch.set_num_threads(threads())
    ours = Ours(config, vocabulary, codebook_kc)
    return ours, TorchPeer(config, vocabulary, ours.params, codebook_kc)


def check_agreement(sides: Sequence[Side], batches: Sequence[Batch], say: Say) -> dict[str, float]:
    """The first step on each batch, from the starting weights; compiles ours for every shape.

    Returns:
      The largest difference of the losses and the largest relative one of the gradient norms.

    Raises:
      UserError: a difference is above its tolerance.
    """
    worst = {"loss_difference": 0.0, "gradient_norm_difference": 0.0}
    for number, batch in enumerate(batches, 1):
        started = time.perf_counter()
        outcomes = []
        for side in sides:
            side.restart()
            side.step(batch)
            outcomes.append(side.outcome())
        (loss, norm), (peer_loss, peer_norm) = outcomes
        differences = abs(loss - peer_loss), abs(norm - peer_norm) / peer_norm
        shape = " x ".join(map(str, batch.tokens.shape))
        say(f"check {number}/{len(batches)}: {shape}, loss {loss:.6f}, {time.perf_counter() - started:.0f} s")
        # Written so that a NaN does not pass.
        if not (differences[0] <= LOSS_TOLERANCE and differences[1] <= NORM_TOLERANCE):
            names = " and ".join(side.name for side in sides)
            raise UserError(
                f"{names} do not compute the same on the batch of {shape}: loss {loss:.6f} and {peer_loss:.6f}, "
                f"gradient norm {norm:.6f} and {peer_norm:.6f}; nothing was timed"
            )
        for name, difference in zip(worst, differences, strict=True):
            worst[name] = max(worst[name], difference)
    for side in sides:
        side.restart()
    return worst


def seconds(side: Side, batches: Sequence[Batch]) -> float:
    """Wall-clock seconds of one step on each batch, after one that is not counted: caches and threads change hands."""
    side.step(batches[0])
    side.outcome()
    started = time.perf_counter()
    for batch in batches:
        side.step(batch)
    side.outcome()
    return time.perf_counter() - started


Times = dict[str, dict[str, list[float]]]  # layout -> side -> seconds of each repeat


def measure(pairs: Sequence[tuple[Sequence[Side], Mapping[str, Sequence[Batch]]]], repeats: int, say: Say) -> Times:
    """Sides take turns at each layout of theirs, and who is first changes with every repeat.

    Args:
      pairs: both sides of a case, and its layouts, named differently in every case.
    """
    times: Times = {layout: {side.name: [] for side in sides} for sides, layouts in pairs for layout in layouts}
    for repeat in range(repeats):
        done = []
        for sides, layouts in pairs:
            for layout, batches in layouts.items():
                for side in sides if repeat % 2 == 0 else reversed(sides):
                    times[layout][side.name].append(seconds(side, batches))
                rates = [f"{side.name} {slots(batches) / times[layout][side.name][-1]:,.0f}" for side in sides]
                done.append(f"{layout}: {', '.join(rates)}")
        say(f"repeat {repeat + 1}/{repeats}, tokens/s: {'; '.join(done)}")
    return times


def side_rows(layouts: Mapping[str, Sequence[Batch]], times: Times) -> list[dict[str, Any]]:
    """One row per side and layout, ours first; ratios are taken repeat by repeat."""
    rows = []
    for layout, batches in layouts.items():
        peer = list(times[layout])[-1]
        for side, taken in times[layout].items():
            ratios = [b / a for a, b in zip(taken, times[layout][peer], strict=True)]
            rows.append(
                {
                    "what": f"{side}, {layout}",
                    "batch": shape_name(batches),
                    "tokens_per_second": spread([slots(batches) / t for t in taken]),
                    "useful_tokens_per_second": spread([useful(batches) / t for t in taken]),
                    "ratio": spread(ratios) if side != peer else None,
                }
            )
    return rows


def useful_row(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Of two rows: each side at its own layout."""
    useful_rates = (row["useful_tokens_per_second"]["values"] for row in (ours, theirs))
    return {
        "what": f"useful tokens: {ours['what']} : {theirs['what']}",
        "batch": None,
        "tokens_per_second": None,
        "useful_tokens_per_second": None,
        "ratio": spread([a / b for a, b in zip(*useful_rates, strict=True)]),
    }


def markdown(result: dict[str, Any]) -> str:
    """The table, with what has to be known to read it."""

    def cell(value: dict[str, Any] | None, form: str) -> str:
        if value is None:
            return ""
        median, low, high = (form.format(value[key]) for key in ("median", "min", "max"))
        return f"{median} ({low}..{high})"

    lines = [
        "| what | batch | tokens/s | useful tokens/s | ours / PyTorch |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        rates = (cell(row[key], "{:,.0f}") for key in ("tokens_per_second", "useful_tokens_per_second"))
        lines.append(f"| {row['what']} | {row['batch'] or ''} | {' | '.join(rates)} | {cell(row['ratio'], '{:.2f}')} |")
    machine, run, check = result["hardware"], result["run"], result["check"]
    others = machine["cpu_share_of_others"]
    parameters = (f"{name}: {case['parameters']:,} parameters" for name, case in run["cases"].items())
    sentences = [
        f"Median (lowest..highest) of {run['repeats']} repeats of {run['steps']} steps; ratios repeat by repeat.",
        f"{', '.join(parameters)}, float32; data loading excluded.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads each; {result['date']};",
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
        f"Before the timing both had the same loss on every batch (largest difference {check['loss_difference']:.1e}).",
    ]
    if others is not None:
        sentences.append(f"Meanwhile other programs used {others:.1%} of the CPU.")
    lines += ["", "\n".join(sentences)]
    if others is not None and others > BUSY:
        lines += ["", "**The machine was busy: these figures are not to be quoted.**"]
    return "\n".join(lines) + "\n"


def run(data_path: str, batch_count: int, repeats: int, say: Say) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    cases = {"demo": demo_case(data_path, batch_count), "reference": reference_case(batch_count)}
    for case in cases.values():
        for layout, batches in case.layouts.items():
            share = useful(batches) / slots(batches)
            say(f"{layout}: {len(batches)} batches of {shape_name(batches)}, {share:.1%} useful")
    sides = {name: both_sides(case.config, case.vocabulary, codebook(case.config)) for name, case in cases.items()}
    checks = [
        check_agreement(sides[name], [batch for batches in case.layouts.values() for batch in batches], say)
        for name, case in cases.items()
    ]
    cpu = CpuUse()
    compiled = [ours.programs for ours, _ in sides.values()]
    times = measure([(sides[name], case.layouts) for name, case in cases.items()], repeats, say)
    if [ours.programs for ours, _ in sides.values()] != compiled:
        raise UserError("a step was compiled again while it was being timed; the figures are worthless")
    rows = {name: side_rows(case.layouts, times) for name, case in cases.items()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware() | {"cpu_share_of_others": cpu.share_of_others()},
        "versions": versions(PACKAGES),
        "run": {
            "repeats": repeats,
            "steps": batch_count,
            "cases": {
                name: {"parameters": parameter_counts(case.config.model)["total"], "config": case.config.to_dict()}
                for name, case in cases.items()
            },
        },
        "check": {key: max(check[key] for check in checks) for key in checks[0]}
        | {"last_loss": {name: {side.name: side.outcome()[0] for side in pair} for name, pair in sides.items()}},
        "rows": [*rows["demo"], useful_row(rows["demo"][0], rows["demo"][-1]), *rows["reference"]],
    }


def main() -> int:
    """Exit code 0, or 1 with one line of reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="made by `aromni prepare numbers --out DIR`")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.json", help="a .md goes beside it")
    parser.add_argument("--batches", type=positive, default=8, metavar="N", help="batches per layout and repeat (8)")
    parser.add_argument("--repeats", type=positive, default=11, metavar="N", help="turns of each side (11)")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    say = clocked()
    return write(
        "throughput", args.out, "Training throughput", lambda: run(args.data, args.batches, args.repeats, say), markdown
    )


if __name__ == "__main__":
    sys.exit(main())
