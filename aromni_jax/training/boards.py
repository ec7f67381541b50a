"""Where people look at a run besides its log: TensorBoard always, Weights & Biases where the config names a project."""

from __future__ import annotations

import hashlib
import html
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import PIL.Image

from aromni_jax.config import RunConfig
from aromni_jax.errors import UserError
from aromni_jax.training.event_files import EventFiles

Wave = tuple[np.ndarray, int]
"""float32 [n] in [-1, 1], mono, and its rate in hertz."""

Shown = Mapping[str, str | PIL.Image.Image | Wave]
"""Samples by name: a text, a picture or sound each."""


class Board(Protocol):
    """Something that shows numbers and samples over steps."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...

    def samples(self, step: int, shown: Shown) -> None: ...

    def close(self) -> None: ...


def open_boards(config: RunConfig, run_directory: pathlib.Path, resume_step: int) -> list[Board]:
    """All boards of a run; what they hold of steps after `resume_step` is about to come again.

    Raises:
      UserError: `train.wandb` names a project, but the package is missing or will not start.
    """
    boards: list[Board] = [TensorBoard(run_directory / "tensorboard", resume_step)]
    if config.train.wandb:
        boards.append(WeightsAndBiases(config, run_directory))
    return boards


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: pathlib.Path, resume_step: int) -> None:
        self._writer = EventFiles(str(folder), purge_step=resume_step + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def samples(self, step: int, shown: Shown) -> None:
        for name, sample in shown.items():
            if isinstance(sample, str):
                self._writer.add_text(name, sample, step)
            elif isinstance(sample, PIL.Image.Image):
                self._writer.add_image(name, np.asarray(sample.convert("RGB")), step, dataformats="HWC")
            else:
                wave_n, rate = sample
                self._writer.add_audio(name, wave_n, step, sample_rate=rate)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run of a project; a run folder that is gone on with is the same run there."""

    def __init__(self, config: RunConfig, run_directory: pathlib.Path) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"train.wandb={config.train.wandb} needs wandb: pip install 'aromni_jax[wandb]', or leave it empty"
            ) from None
        self._wandb = wandb
        folder = run_directory.resolve()
        try:
            self._run: Any = wandb.init(
                project=config.train.wandb,
                name=folder.name,
                id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],
                resume="allow",
                dir=str(folder),
                config=config.to_dict(),
            )
        except Exception as error:  # of its own kinds: no key, no network
            first = str(error).strip().splitlines()[:1]
            raise UserError(f"train.wandb={config.train.wandb}: {type(error).__name__}: {''.join(first)}") from error

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def samples(self, step: int, shown: Shown) -> None:
        values: dict[str, Any] = {}
        for name, sample in shown.items():
            if isinstance(sample, str):
                values[name] = self._wandb.Html(f"<pre>{html.escape(sample)}</pre>")
            elif isinstance(sample, PIL.Image.Image):
                values[name] = self._wandb.Image(sample)
            else:
                wave_n, rate = sample
                values[name] = self._wandb.Audio(wave_n, sample_rate=rate)
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
