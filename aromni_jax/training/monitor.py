"""From the metrics of single steps to log lines: one line for every `log_every` steps, over all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax import data
from aromni_jax.config import RunConfig
from aromni_jax.errors import UserError
from aromni_jax.model import Trained
from aromni_jax.training.metrics import Metrics, MetricsLog, summary
from aromni_jax.training.optimizer import learning_rate
from aromni_jax.training.progress import MFU, Clock, Progress, model_flops_utilisation

_SLOW_SECONDS, _SLOW_SHARE = 1.0, 0.25  # of a window's steps: waits for data beyond both are told of


class Monitor:
    """Adds up the metrics of a window of steps, writes and shows them, and stops a run that has gone bad.

    Attributes:
      skipped: non-finite steps of the run so far.
    """

    def __init__(
        self,
        config: RunConfig,
        parts: Trained,
        log: MetricsLog,
        progress: Progress,
        devices: list[jax.Device],
        skipped: int,
    ) -> None:
        self._config = config
        self._parts = parts
        self._log = log
        self._progress = progress
        self._devices = devices
        # All rates at once: evaluating the schedule at a log line would queue behind the step that runs by then.
        schedule = jax.vmap(learning_rate(config.optimizer, config.train.steps))
        self._rates = np.asarray(jax.jit(schedule)(jnp.arange(config.train.steps)))
        self._window: Metrics | None = None
        self.skipped = skipped
        self.clock = Clock()

    def observe(self, done: int, metrics: Metrics) -> None:
        """Take the metrics of the step that made `done` steps; waits for that step.

        Raises:
          UserError: more steps than `train.max_skipped_steps` were not finite.
        """
        values = jax.device_get(metrics)
        self._window = values if self._window is None else self._window + values
        self.skipped += int(values.skipped)
        self._progress.advance()
        if done % self._config.train.log_every == 0:
            self.write(done)
        if self.skipped > self._config.train.max_skipped_steps:
            raise UserError(
                f"step {done}: {self.skipped} steps had a loss or gradient that is not finite "
                f"(train.max_skipped_steps is {self._config.train.max_skipped_steps}): lower optimizer.peak_lr or "
                "look at the data"
            )

    def write(self, done: int) -> None:
        """Log the window up to `done` and begin the next one; nothing if it is empty."""
        if self._window is None:
            return
        config, window = self._config, self._window
        seconds = self.clock.stepping()
        steps = float(window.steps)
        values = summary(window, config.loss.perceptual_weight)
        values |= {
            "learning_rate": float(self._rates[max(done - self.skipped - 1, 0)]),
            "skipped_steps": float(self.skipped),
            "tokens_per_second": float(window.slots) / seconds,
            "useful_tokens_per_second": float(window.tokens) / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_seconds": self.clock.waited,
            "goodput": self.clock.goodput(),
            "window_seconds": self.clock.wall(),
        }
        values |= {f"{name}_seconds": spent for name, spent in self.clock.phases.items()}
        utilisation = model_flops_utilisation(
            config, self._parts, values["tokens_per_second"], len(self._devices), self._devices[0].device_kind
        )
        if utilisation is not None:
            values[MFU] = utilisation
        self._log.write(done, "train", values)
        self._progress.show(done, values)
        slowest = data.slowest_file()
        if slowest and self.clock.waited > max(_SLOW_SECONDS, _SLOW_SHARE * seconds):
            self._progress.line(
                f"note: {self.clock.waited:.1f} of {seconds:.1f} s were spent waiting for data; slowest to read: "
                f"{slowest[0]} ({slowest[1]:.1f} s)"
            )
        self._window = None
        self.clock.restart()
