"""What a step measures, and where it is written down."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax import store
from aromni_jax.training.boards import Board, Shown
from aromni_jax.vocabulary import TASKS, Modality


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Sums over tokens (never means), so that steps, devices and batches add up exactly.

    Attributes (float32; counts are exact below 2**24 per step):
      weighted_loss, weight: sum of w * CE and of w over all targets.
      perceptual_loss, perceptual_count: sum over image positions, and their number.
      modalities: [4, 3], tasks: [len(TASKS), 3]: per group sum of CE (nats), number and right guesses of the targets
        with a positive weight.
      tokens, slots: real tokens and all places of the rows.
      steps, skipped, grad_norm: optimiser steps, those that changed nothing, and the sum of the others' gradient norms.
    A skipped step adds nothing but `slots`, `steps` and `skipped`.
    """

    weighted_loss: jax.Array
    weight: jax.Array
    perceptual_loss: jax.Array
    perceptual_count: jax.Array
    modalities: jax.Array
    tasks: jax.Array
    tokens: jax.Array
    slots: jax.Array
    steps: jax.Array
    skipped: jax.Array
    grad_norm: jax.Array

    def __add__(self, other: Metrics) -> Metrics:
        return jax.tree.map(lambda a, b: a + b, self, other)


def group_sums(
    groups_bs: jax.Array, number: int, ce_bs: jax.Array, correct_bs: jax.Array, counts_bs: jax.Array
) -> jax.Array:
    """[number, 3]: sums of CE, count and right guesses over the positions where `counts_bs`, by group."""
    member_gbs = groups_bs[None] == jnp.arange(number)[:, None, None]
    values_cbs = jnp.stack([ce_bs, jnp.ones_like(ce_bs), correct_bs.astype(jnp.float32)])
    # where, not a product: a non-finite CE outside the group must not leak into it.
    chosen = member_gbs[:, None] & counts_bs[None, None]
    return jnp.sum(jnp.where(chosen, values_cbs[None], 0.0), axis=(2, 3))


def summary(metrics: Metrics, perceptual_weight: float) -> dict[str, float]:
    """Flat dict of means on the host: `loss`, `loss/speech`, `accuracy/task/image_caption`, `tokens/text`...

    Groups without a target are left out. `loss` is what the optimiser minimises: weighted next-token mean plus the
    weighted perceptual mean; the others are plain means in nats.
    """
    sums = jax.tree.map(np.asarray, metrics)
    values: dict[str, float] = {"ntp_loss": _ratio(sums.weighted_loss, sums.weight)}
    if sums.perceptual_count > 0:
        values["perceptual_loss"] = _ratio(sums.perceptual_loss, sums.perceptual_count)
    values["loss"] = values["ntp_loss"] + perceptual_weight * values.get("perceptual_loss", 0.0)
    values["token_loss"] = _ratio(sums.modalities[:, 0].sum(), sums.modalities[:, 1].sum())
    names = [*(m.name.lower() for m in Modality), *(f"task/{task}" for task in TASKS)]
    for name, (loss, count, correct) in zip(names, [*sums.modalities, *sums.tasks], strict=True):
        if count > 0:
            values[f"loss/{name}"] = _ratio(loss, count)
            values[f"accuracy/{name}"] = _ratio(correct, count)
            values[f"tokens/{name}"] = float(count)
    if sums.grad_norm > 0:
        values["grad_norm"] = _ratio(sums.grad_norm, sums.steps - sums.skipped)
    return values


class MetricsLog:
    """`metrics.jsonl` in the run folder: one JSON object a line; and the same numbers on the run's boards.

    A line is appended whole or not at all, also by a killed run or on a full disk. Opening at step n drops the lines
    after n, which a resumed run is about to write again. Of several processes, which all know the same, the first one
    writes.

    Attributes:
      dropped: training lines that a resumed run writes again.
    """

    def __init__(self, run_directory: pathlib.Path, resume_step: int, boards: Sequence[Board] = ()) -> None:
        self.file = run_directory / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        self._boards = boards
        self.dropped: list[dict[str, Any]] = []
        if not self._writes:
            return
        lines = read_log(self.file)
        self.dropped = [line for line in lines if line["step"] > resume_step and line["kind"] == "train"]
        kept = [line for line in lines if line["step"] <= resume_step]
        store.write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Append one line; `kind` is "train" or "eval". Non-finite values are written as null (valid JSON)."""
        if not self._writes:
            return
        finite = {name: _rounded(value) if math.isfinite(value) else None for name, value in values.items()}
        store.append_line(self.file, {"step": step, "kind": kind, **finite})
        for board in self._boards:
            board.numbers(step, {f"{kind}/{name}": value for name, value in values.items()})

    def show(self, step: int, samples: Shown) -> None:
        """Samples, for the boards only: their files are the sampler's."""
        for board in self._boards:
            board.samples(step, samples)

    def close(self) -> None:
        """Bring the boards to their end."""
        for board in self._boards:
            board.close()


def read_log(file: pathlib.Path) -> list[dict[str, Any]]:
    """Whole lines of a metrics log, with a step and a kind; others, torn or edited, are dropped; [] without a file."""
    if not file.exists():
        return []
    lines = []
    for text in file.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("kind"), str):
            lines.append(line)
    return lines


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")


def _ratio(total: Any, count: Any) -> float:
    return float(total) / max(float(count), 1e-30)
