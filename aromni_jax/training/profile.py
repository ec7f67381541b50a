"""A window of steps under the profiler of JAX (`aromni train --profile FROM:TO`)."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

from aromni_jax.training.progress import Clock, Progress

FOLDER = "profile"


class Profile:
    """Traces the steps of `window`, first and last included, into `profile/` of the run folder.

    Steps are counted as in the log: step n makes n of them. A device is waited for at both ends of the window, so that
    it holds whole steps and no others. Of several processes the first one is traced. A profiler that fails is one
    warning line: a trace is no reason to end a run.
    """

    def __init__(
        self,
        run_directory: pathlib.Path,
        window: tuple[int, int] | None,
        steps_left: range,
        progress: Progress,
        clock: Clock,
    ) -> None:
        self._folder, self._progress, self._clock = run_directory / FOLDER, progress, clock
        self._steps = range(0)
        self._running = False
        if window is None:
            return
        first, last = window
        self._steps = range(max(first, steps_left.start), min(last + 1, steps_left.stop))
        if not self._steps:
            left = f"{steps_left.start}:{steps_left.stop - 1}"
            progress.line(f"note: no profile: steps {first}:{last} are none of the steps to come, {left}")
        if jax.process_index() != 0:
            self._steps = range(0)

    def before(self, step: int, state: Any) -> None:
        """Begin, if `step` is the first of the window; `state` is what it starts from."""
        if self._steps and step == self._steps.start:
            jax.block_until_ready(state)
            try:
                with self._clock.phase("profile"):
                    jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            except Exception as error:  # the disk, or another profiler that runs
                return self._failed(error)
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """End, if `step` was the last of the window; `state` is what it made."""
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """End the trace, if one is running, and say where it is."""
        if not self._running:
            return
        self._running = False
        try:
            with self._clock.phase("profile"):
                jax.profiler.stop_trace()
        except Exception as error:
            return self._failed(error)
        traces = sorted(self._folder.rglob("perfetto_trace.json.gz"))
        self._progress.line(
            f"profile of steps {self._steps.start}:{self._steps[-1]}: {traces[-1] if traces else self._folder} "
            f"(open it at ui.perfetto.dev, or all of {self._folder} in TensorBoard with its profile plugin)"
        )

    def _failed(self, error: Exception) -> None:
        reason = (str(error).strip().splitlines() or [""])[0]
        self._progress.line(f"warning: no profile ({type(error).__name__}: {reason[:300]})")
