"""What a run folder tells of its course, finished or not: steps, time, restarts, machine, samples over time."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aromni_jax.errors import UserError
from aromni_jax.evaluation import report_figures as figures
from aromni_jax.evaluation.report_files import read_list
from aromni_jax.evaluation.report_samples import Segment, read_segments

Lines = Sequence[Mapping[str, Any]]

_MOST_FRAMES = 8  # of a prompt over time
_PHASES = {  # of a log line and of a start, in the order of the bar
    "steps": "training steps",
    "data_wait": "waiting for data",
    "eval": "evaluation",
    "checkpoint": "checkpoints",
    "samples": "samples",
    "first_samples": "first samples, with compiling for them",
    "profile": "profiler",
    "prepare": "opening data and state",
    "compile": "compiling the step",
    "lost": "steps made again after a restart",
}


def facts(history: Lines, config: Mapping[str, Any], log: Path) -> dict[str, Any]:
    """What `metrics.json` would say of a run that has none: recipe, model, machine and versions of its last start."""
    found: dict[str, Any] = {"recipe": dict(config)} if config else {}
    if log.exists():
        found["created"] = datetime.fromtimestamp(log.stat().st_mtime, UTC).isoformat()
    if starts := _starts(history):
        last = starts[-1]
        counts = dict(figures.mapping(last.get("parameters")))
        total = counts.pop("total", None)
        per_token = figures.finite(last.get("flops_per_token"))
        found["model"] = {"parameters": total, "by_group": counts}
        if per_token:
            found["model"]["MFLOP per token, forward and backward"] = round(per_token / 1e6, 1)
        machine = dict(figures.mapping(last.get("hardware")))
        if isinstance(mesh := machine.get("mesh"), Mapping):
            machine["mesh"] = " x ".join(f"{axis} {size}" for axis, size in mesh.items()) or "one device"
        found["environment"] = {**machine, **figures.mapping(last.get("versions"))}
        if isinstance(last.get("vocabulary"), Mapping):
            found["vocabulary"] = last["vocabulary"]
    return found


@dataclass(frozen=True)
class Start:
    """One start of a run: when, from which step, steps made again, what it took, and how it ended, if it says."""

    time: str
    step: int
    again: int
    lost: str
    seconds: str
    devices: str
    ended: str


@dataclass(frozen=True)
class Course:
    """How a run went.

    Attributes:
      done, planned: steps; planned is None where no config says.
      goodput: share of all time that went into steps that were kept; None where the log has no times.
      bar, parts: all time, by what it went into.
      skipped: steps whose loss or gradient was not finite.
    """

    done: int
    planned: int | None
    goodput: float | None
    total: str
    bar: Markup
    parts: list[figures.Part]
    skipped: int
    starts: list[Start]


def course(lines: Lines, history: Lines, config: Mapping[str, Any]) -> Course:
    """From the log, starts and ends, and the config; each may be empty."""
    steps = [step for line in lines if (step := figures.finite(line.get("step"))) is not None]
    skipped = [n for line in lines if (n := figures.finite(line.get("skipped_steps"))) is not None]
    planned = figures.finite(figures.mapping(config.get("train")).get("steps"))
    seconds = _seconds(lines, history)
    bar, parts = figures.parts_of({_PHASES.get(k, k): v for k, v in seconds.items()}, figures.duration)
    total = sum(seconds.values())
    kept = seconds.get("steps", 0.0) + seconds.get("data_wait", 0.0)
    return Course(
        done=int(max(steps, default=0)),
        planned=None if planned is None else int(planned),
        goodput=kept / total if kept else None,
        total=figures.duration(total),
        bar=bar,
        parts=parts,
        skipped=int(max(skipped, default=0)),
        starts=[_start(line, ended) for line, ended in zip(_starts(history), _ends(history), strict=True)],
    )


def _starts(history: Lines) -> list[Mapping[str, Any]]:
    return [line for line in history if line.get("kind") == "start"]


def _ends(history: Lines) -> list[str]:
    """Of every start, in words; "" where it has not ended, or was killed."""
    ends: list[str] = []
    for line in history:
        if line.get("kind") == "start":
            ends.append("")
        elif ends:
            ends[-1] = f"{line.get('stopped_by') or 'finished'}, at step {line.get('step')}"
    return ends


def _seconds(lines: Lines, history: Lines) -> dict[str, float]:
    """All time that the run has noted, by phase; {} for a log without times."""
    spent = dict.fromkeys(_PHASES, 0.0)
    for line in lines:
        window = figures.finite(line.get("window_seconds"))
        if window is None:
            continue
        phases = {
            name: value
            for name in _PHASES
            if name not in ("steps", "data_wait") and (value := figures.finite(line.get(f"{name}_seconds")))
        }
        waited = figures.finite(line.get("data_wait_seconds")) or 0.0
        for name, value in phases.items():
            spent[name] += value
        spent["data_wait"] += waited
        spent["steps"] += max(window - sum(phases.values()) - waited, 0.0)
    if not any(spent.values()):
        return {}
    for line in history:
        for name, value in figures.mapping(line.get("seconds")).items():
            spent[name] = spent.get(name, 0.0) + (figures.finite(value) or 0.0)
        spent["lost"] += figures.finite(line.get("lost_seconds")) or 0.0
    return {name: value for name, value in spent.items() if value > 0}


def _start(line: Mapping[str, Any], ended: str) -> Start:
    step, reached = (int(figures.finite(line.get(key)) or 0) for key in ("step", "reached_before"))
    lost = figures.finite(line.get("lost_seconds")) or 0.0
    took = sum(figures.finite(value) or 0.0 for value in figures.mapping(line.get("seconds")).values())
    return Start(
        time=str(line.get("time", "")).replace("T", " ").replace("+00:00", " UTC"),
        step=step,
        again=max(reached - step, 0),
        lost=figures.duration(lost) if lost else "",
        seconds=figures.duration(took),
        devices=str(figures.mapping(line.get("hardware")).get("devices", "")),
        ended=ended,
    )


# -- samples over time ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """One held-out prompt: what was given, what the data answers, and (step, answer of the model) over time."""

    title: str
    given: tuple[Segment, ...]
    wanted: tuple[Segment, ...]
    frames: tuple[tuple[int, tuple[Segment, ...]], ...]

    @property
    def sounds(self) -> bool:
        """Whether any answer is heard."""
        return any(part.kind == "speech" for _, parts in self.frames for part in parts)

    @property
    def media_bytes(self) -> int:
        """Length of the data URIs it brings into the page."""
        parts = [*self.given, *self.wanted, *(part for _, answer in self.frames for part in answer)]
        return sum(len(part.uri) + len(part.picture) for part in parts)


def prompts(folder: Path, budget: int) -> tuple[list[Prompt], int]:
    """What lies in `folder`/STEP, with as many steps (evenly spread, the newest among them) as fit into `budget` bytes.

    A step whose samples.json is not there yet is left out.

    Returns:
      The prompts, and how many more there are, too large even with their newest answer alone.

    Raises:
      UserError: a record that is none, or media that are missing, named.
    """
    found = sorted(folder.glob("*/samples.json"))
    files = {int(path.parent.name): path for path in found if path.parent.name.isdecimal()}
    read = functools.cache(_read)
    made: list[Prompt] = []
    for most in range(min(_MOST_FRAMES, len(files)), 0, -1):
        made = _prompts({step: read(files[step]) for step in _spread(sorted(files), most)})
        if sum(prompt.media_bytes for prompt in made) <= budget:
            return made, 0
    kept = []
    for prompt in made:
        if prompt.media_bytes <= budget:
            kept.append(prompt)
            budget -= prompt.media_bytes
    return kept, len(made) - len(kept)


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """So many of them, the last one included, and the first one, if there are two."""
    if most == 1:
        return [steps[-1]]
    return [steps[round(at * (len(steps) - 1) / (most - 1))] for at in range(most)]


def _read(file: Path) -> dict[str, dict[str, tuple[Segment, ...]]]:
    """Task -> "input", "wanted" and "output" of its record."""
    tasks = {}
    for at, record in enumerate(read_list(file)):
        where = f"{file}, record {at}"
        sides = (
            {key: record.get(key) or [] for key in ("input", "wanted", "output")} if isinstance(record, Mapping) else {}
        )
        if not sides or not all(isinstance(parts, list) for parts in sides.values()):
            raise UserError(f"{where}: expected an object with lists of segments; delete the folder {file.parent}")
        tasks[str(record.get("task"))] = {key: read_segments(file.parent, parts, where) for key, parts in sides.items()}
    return tasks


def _prompts(by_step: Mapping[int, Mapping[str, Mapping[str, tuple[Segment, ...]]]]) -> list[Prompt]:
    """One for each task, its input and what is wanted from the last step that has it."""
    last = {task: sides for tasks in by_step.values() for task, sides in tasks.items()}
    return [
        Prompt(
            title=figures.words(task),
            given=sides["input"],
            wanted=sides["wanted"],
            frames=tuple((step, tasks[task]["output"]) for step, tasks in by_step.items() if task in tasks),
        )
        for task, sides in last.items()
    ]
