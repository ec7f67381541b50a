"""`history.jsonl` in the run folder: every start and end of the run. What the log forgets on resuming stays here."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import aromni_jax
from aromni_jax import store
from aromni_jax.config import RunConfig
from aromni_jax.model import flops_per_token, parameter_counts, trained
from aromni_jax.vocabulary import JointVocabulary

FILE = "history.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def note_start(
    run_directory: pathlib.Path,
    config: RunConfig,
    vocabulary: JointVocabulary,
    mesh: jax.sharding.Mesh,
    first: int,
    dropped: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> None:
    """Append the line of this start; of several processes, the first one does.

    Args:
      first: step that the run goes on from; 0 = a new one.
      dropped: training lines of the log beyond it, which an earlier start had made and this one makes again.
      seconds: what the start took, by phase.

    Raises:
      UserError: the file cannot be written.
    """
    if jax.process_index() != 0:
        return
    device = mesh.devices.flat[0]
    windows = [line.get("window_seconds") for line in dropped]  # null where it was no number, and the log can be edited
    line = {
        "kind": "start",
        "time": _now(),
        "step": first,
        "reached_before": max((int(line["step"]) for line in dropped), default=first),
        "lost_seconds": round(sum(took for took in windows if isinstance(took, (int, float))), 3),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "hardware": {
            "devices": f"{mesh.size} x {device.device_kind}",
            "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
            "processes": jax.process_count(),
            "processor": processor(),
            "cores": os.cpu_count(),
        },
        "versions": {
            "aromni_jax": aromni_jax.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "vocabulary": vocabulary.to_dict(),
        "parameters": parameter_counts(config.model),
        "flops_per_token": flops_per_token(
            config.model, config.data.sequence_length, trained=trained(config, vocabulary).table
        ),
    }
    store.append_line(run_directory / FILE, line)


def note_end(run_directory: pathlib.Path, step: int, stopped_by: str | None, seconds: Mapping[str, float]) -> None:
    """Append the line of an end; a run that was killed has none. Of several processes, the first one does.

    Args:
      stopped_by: name of the signal; None = the run is finished.
      seconds: what came after the last line of the log (evaluation, checkpoint, samples), by phase.

    Raises:
      UserError: the file cannot be written.
    """
    if jax.process_index() == 0:
        spent = {name: round(value, 3) for name, value in seconds.items()}
        line = {"kind": "end", "time": _now(), "step": step, "stopped_by": stopped_by, "seconds": spent}
        store.append_line(run_directory / FILE, line)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def processor() -> str:
    """Name of this machine's CPU."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
