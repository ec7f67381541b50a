"""What a run tells the person who watches it: a report at the start, then a bar or lines, and the clock behind both."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import tqdm

from aromni_jax.config import RunConfig
from aromni_jax.model import Trained, flops_per_token, parameter_counts
from aromni_jax.training.state import TrainState
from aromni_jax.vocabulary import Modality

Say = Callable[[str], None]
MFU = "mfu_causal_bf16"  # the convention is `model_flops_utilisation`'s

# Dense bf16 peak of one chip, FLOP/s, by a piece of JAX's device kind (vendors' data sheets).
_PEAK_BF16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
}


def start_report(
    config: RunConfig, parts: Trained, state: TrainState, mesh: jax.sharding.Mesh, step_memory: int | None
) -> str:
    """Parameters by group, memory, FLOPs per token: what a run is, before its first step.

    Args:
      parts: what is trained.
      state: arrays or abstract arrays with shardings.
      step_memory: bytes of temporaries of the compiled step on one device, where the compiler tells.
    """
    counts = parameter_counts(config.model)
    groups = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "total" and count)
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    memory = f"state {held / 2**20:.1f} MiB"
    if step_memory:
        memory += f" + step {step_memory / 2**20:.1f} MiB"
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    data = config.data
    flops = flops_per_token(config.model, data.sequence_length, trained=parts.table)
    own = sum(math.prod(spec.shape) for spec in parts.table.values())
    share = "" if own == counts["total"] else f"; trained {own:,}"
    return "\n".join(
        [
            f"parameters  {counts['total']:,} ({groups}){share}",
            f"memory      {memory} on each device ({mesh.devices.flat[0].device_kind}, {shape})",
            f"batch       {data.batch_size} rows x {data.sequence_length} tokens, "
            f"{config.train.accumulate_steps} micro-batch(es)",
            f"compute     {flops / 1e6:.1f} MFLOP per token (forward and backward, causal attention over a full row)",
        ]
    )


def model_flops_utilisation(
    config: RunConfig, parts: Trained, tokens_per_second: float, devices: int, kind: str
) -> float | None:
    """Causal-aware MFU against the dense bf16 peak; None for a device whose peak is not known here.

    Convention: `model.flops_per_token` of a full row; padding counts as tokens; recomputation does not count.
    """
    for name, peak in _PEAK_BF16.items():
        if name in kind:
            flops = flops_per_token(config.model, config.data.sequence_length, trained=parts.table)
            return flops * tokens_per_second / (devices * peak)
    return None


class Clock:
    """Wall time since the last `restart`, and how much of it went into named phases other than steps."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Zero."""
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}
        self.waited = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's wall time under `name`, as no part of stepping."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's wall time as waiting for data: a part of stepping, since a device may work meanwhile."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - start

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase."""
        return dict(self._phases)

    def spent(self, name: str) -> float:
        """Seconds in a phase."""
        return self._phases.get(name, 0.0)

    def wall(self) -> float:
        """Seconds since `restart`."""
        return time.perf_counter() - self._start

    def stepping(self) -> float:
        """Seconds outside every phase: what tokens per second are counted over."""
        return max(self.wall() - sum(self._phases.values()), 1e-9)

    def goodput(self) -> float:
        """Share of wall time that went into steps."""
        return self.stepping() / max(self.wall(), 1e-9)


class Progress:
    """A tqdm bar in a terminal, plain lines elsewhere; live losses per modality in both."""

    def __init__(self, steps: int, first: int, say: Say | None = None) -> None:
        self._steps = steps
        self._bar = None
        if say is None and sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True, mininterval=0.5)
        self._say = say or print

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Losses and speed of the last window; the bar brings its own ETA."""
        speed = f"{values['tokens_per_second']:,.0f} tok/s ({values['useful_tokens_per_second']:,.0f} useful)"
        if MFU in values:
            speed += f", MFU {values[MFU]:.1%}"
        speed += f", data wait {values['data_wait_seconds'] / values['window_seconds']:.0%}"
        speed += f", goodput {values['goodput']:.0%}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{losses(values)}, {speed}")
            return
        left = (self._steps - step) * values["seconds_per_step"]
        self._say(f"step {step}/{self._steps}  {losses(values)}  {speed}  {_duration(left)} left")

    def line(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            self._say(text)

    def close(self) -> None:
        """Leave the bar as it is and free the line."""
        if self._bar is not None:
            self._bar.close()


def losses(values: Mapping[str, float]) -> str:
    """`loss 3.21 [text 1.20 image 3.30 speech 4.01]`."""
    kinds = [kind.name.lower() for kind in Modality if kind != Modality.MARKER]
    parts = " ".join(f"{kind} {values[f'loss/{kind}']:.3f}" for kind in kinds if f"loss/{kind}" in values)
    return f"loss {values['loss']:.3f} [{parts}]"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
