"""Samples while training: what the loop asks of whoever makes them, and what it does when that fails."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax

from aromni_jax.model import Params
from aromni_jax.parallel import exchange
from aromni_jax.training.boards import Shown
from aromni_jax.training.metrics import MetricsLog
from aromni_jax.training.progress import Progress

Sampler = Callable[[Params, int], Shown]
"""(parameters, step) -> samples by name. The parameters are used where they are, and not after the call: the next step
gives their memory away. Called in the context of the run's mesh, by all of several processes; the first one shows."""


def take_samples(sampler: Sampler, params: Params, step: int, log: MetricsLog, progress: Progress) -> None:
    """Make the samples of a step and show them. A failure is one warning line: samples are no reason to end a run.

    Raises:
      UserError: of several processes not all came to the end. Whoever failed alone may not go on: its next step would
        meet the others' decoding.
    """
    started = time.perf_counter()
    try:
        shown = sampler(params, step)
        log.show(step, shown)
        line = f"step {step}: {len(shown)} samples in {time.perf_counter() - started:.1f} s"
    except Exception as error:  # whatever it is: a prompt, a codec, the disk, the memory of the device
        reason = (str(error).strip().splitlines() or [""])[0]
        line = f"warning: step {step}: no samples ({type(error).__name__}: {reason[:300]})"
    if jax.process_index() == 0 or line.startswith("warning"):
        progress.line(line)
    exchange("samples")
