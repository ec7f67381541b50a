"""How worlds read their media folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from aromni_jax.errors import UserError
from aromni_jax.worlds.world import SAMPLE_RATE


def read_json(path: Path, repair: str) -> Any:
    """The value in a JSON file; UserError saying how to `repair` it when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {repair}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}): {repair}") from error


def read_wave(path: Path, dtype: str, repair: str) -> np.ndarray:
    """A mono sound file at the rate of all speech -> `dtype` [n], read-only; UserError saying how to `repair` it."""
    try:
        wave, rate = soundfile.read(path, dtype=dtype)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"{path}: cannot be read as audio: {repair}") from error
    if rate != SAMPLE_RATE or wave.ndim != 1:
        raise UserError(f"{path}: want mono at {SAMPLE_RATE} Hz, found shape {wave.shape} at {rate} Hz: {repair}")
    wave.flags.writeable = False
    return wave
