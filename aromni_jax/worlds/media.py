"""How worlds read their media folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from aromni_jax.errors import UserError


def read_json(path: Path, repair: str) -> Any:
    """The value in a JSON file; UserError saying how to `repair` it when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {repair}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}): {repair}") from error


def read_wave(path: Path, sample_rate: int, dtype: str, repair: str) -> np.ndarray:
    """A mono recording [n], read-only; UserError when it is none of that rate."""
    try:
        wave, rate = soundfile.read(path, dtype=dtype)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"{path}: cannot be read as audio: {repair}") from error
    if rate != sample_rate or wave.ndim != 1:
        raise UserError(f"{path}: want mono at {sample_rate} Hz, found shape {wave.shape} at {rate} Hz: {repair}")
    wave.flags.writeable = False
    return wave
