"""`aromni demo`: raw media -> tokens -> pretraining -> held-out scores -> samples -> one page, on this machine."""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Mapping
from typing import Any

from aromni_jax import store
from aromni_jax.cli.evaluate import add_judge_arguments, judged
from aromni_jax.config import RunConfig, load_config
from aromni_jax.errors import UserError
from aromni_jax.worlds import WORLDS

EXAMPLE = "aromni demo --run-dir runs/demo --steps 6000"

RECIPES = pathlib.Path(__file__).parents[2] / "configs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--world", choices=WORLDS, help="what to learn (default: the recipe's, or numbers)")
    parser.add_argument(
        "--run-dir", type=pathlib.Path, help="new, or one to go on with (default: runs/demo, runs/demo-things)"
    )
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--examples", type=int, help="training examples to make (default: the world's; numbers: 80000)")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="the recipe (default: configs/WORLD.py:demo)")
    parser.add_argument(
        "--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="config values to change"
    )
    add_judge_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """0 when the page is written; 130 when a signal ended the training early (the same command goes on)."""
    from aromni_jax.evaluation.report import write_report
    from aromni_jax.evaluation.standards import standard_of

    config = _recipe(args)
    standard = standard_of(config.world)
    finished = args.run_dir / "metrics.json"
    done = _steps_done(finished, config)
    if done >= config.train.steps:
        print(f"{args.run_dir} is finished (step {done}): nothing to train; STEPS=... goes on longer")
        print(f"report: {write_report(args.run_dir)}")
        return 0
    # The promise is about one sitting; the time of a run that goes on from an earlier one says nothing about it.
    timing = _Timing()
    if standard.demo_seconds and not (args.run_dir / "data").exists():
        timing["bound"] = standard.demo_seconds
    with timing.phase("tokenise"):
        data = _prepare(config, args.examples)
    with timing.phase("train"):
        stopped = _train(config, args.run_dir)
    if stopped:
        return 130
    metrics = _judge(config, args, timing, data)
    store.write_json(finished, metrics)
    report = write_report(args.run_dir)
    print(_table(metrics["held_out"], standard.bounds))
    print(f"report: {report}")
    return 0


def _recipe(args: argparse.Namespace) -> RunConfig:
    """The configuration asked for; `args.run_dir` is set where nobody chose one."""
    world = args.world or "numbers"
    recipe = args.config or f"{RECIPES / world}.py:demo"
    if not args.config and not RECIPES.is_dir():
        raise UserError(
            "aromni demo runs in a clone of the repository, where configs/ is; or name a recipe with --config"
        )
    steps = [f"train.steps={args.steps}"] if args.steps else []
    changes = [*args.set, *steps]
    made_for = load_config(recipe, changes).world
    if args.world and made_for != args.world:
        raise UserError(f"{recipe} is a recipe of the world {made_for}, not of {args.world}")
    if args.run_dir is None:
        args.run_dir = pathlib.Path("runs/demo" if made_for == "numbers" else f"runs/demo-{made_for}")
    return load_config(recipe, [*changes, f'data.path="{args.run_dir / "data"}"'])


def _steps_done(metrics: pathlib.Path, config: RunConfig) -> int:
    """Steps of the finished run whose metrics lie there; 0 if there is none of this recipe."""
    if not metrics.exists():
        return 0
    asked, made = config.to_dict(), store.read_json(metrics).get("recipe") or {"train": {}}
    steps = made["train"].get("steps", 0)
    return steps if {**made, "train": {**made["train"], "steps": config.train.steps}} == asked else 0


class _Timing(dict[str, float]):
    """Seconds by phase, each announced, and the bound on them all, if there is one."""

    def phase(self, name: str) -> _Phase:
        return _Phase(self, name)


class _Phase:
    def __init__(self, timing: _Timing, name: str) -> None:
        self._timing, self._name = timing, name

    def __enter__(self) -> None:
        print(f"== {self._name}", flush=True)
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._timing[self._name] = time.perf_counter() - self._started


def _prepare(config: RunConfig, examples: int | None) -> dict[str, Any]:
    """Raw media -> packed rows; returns the figures of the data set."""
    from aromni_jax.prepare import prepare_world

    manifest = prepare_world(
        config.world,
        config.data.path,
        examples=examples,
        template=config.template,
        sequence_length=config.data.sequence_length,
    )
    return {**manifest.figures("train"), "held_out": manifest.figures("test"), **manifest.statistics}


def _train(config: RunConfig, run_dir: pathlib.Path) -> str | None:
    """Name of the signal that ended it early, or None."""
    from aromni_jax.cli.train import codebook, sampler
    from aromni_jax.training import train

    return train(config, run_dir, codebook_kc=codebook(config), sampler=sampler(config, run_dir)).stopped_by


def _judge(config: RunConfig, args: argparse.Namespace, timing: _Timing, data: dict[str, Any]) -> dict[str, Any]:
    """Everything that metrics.json holds."""
    import jax

    from aromni_jax.evaluation.held_out import bounds_met
    from aromni_jax.evaluation.standards import standard_of
    from aromni_jax.model import parameter_counts
    from aromni_jax.tasks import Assistant
    from aromni_jax.training.history import processor

    with timing.phase("evaluate"):
        assistant = Assistant.load(args.run_dir)
        scores = judged(assistant, config.world, args.judges, args.run_dir / "samples")
    curves = read_curves(args.run_dir / "metrics.jsonl")
    for name, verdict in bounds_met(scores, standard_of(config.world).bounds).items():
        scores[name] |= {"bound": verdict["bound"], "passed": verdict["passed"]}
    scores["loss_falls"] = losses_fall(curves)
    trained = [line for line in curves if line["kind"] == "train"]
    counts = parameter_counts(config.model)
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "devices": ", ".join(str(device) for device in jax.devices()),
        },
        "recipe": config.to_dict(),
        "model": {
            "by_group": counts,
            "parameters": counts.pop("total"),
        },
        "vocabulary": assistant.vocabulary.to_dict(),
        "data": data,
        "timing": dict(timing),
        "training": {
            "steps": config.train.steps,
            "tokens_per_second": _median([line["tokens_per_second"] for line in trained]),
            "useful_tokens_per_second": _median([line["useful_tokens_per_second"] for line in trained]),
        },
        "held_out": scores,
        "reproduce": "make demo" if config.world == "numbers" else f"make demo WORLD={config.world}",
    }


def read_curves(path: pathlib.Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    from aromni_jax.training.metrics import read_log

    if not path.is_file():
        raise UserError(f"{path}: no such file; was the run trained here?")
    return read_log(path)


def losses_fall(curves: list[dict[str, Any]]) -> dict[str, bool]:
    """Per modality: whether the held-out loss still falls at the end of the run.

    The mean of its last fifth of readings is below that of the fifth before; one reading wobbles by some per cent.
    """
    held_out = [line for line in curves if line["kind"] == "eval"]
    count = max(1, len(held_out) // 5)

    def falls(kind: str) -> bool:
        # A loss that was not finite is null in the log.
        losses = [line.get(f"loss/{kind}") for line in held_out[-2 * count :]]
        finite = [loss for loss in losses if loss is not None]
        if len(finite) < 2 * count:
            return False
        return statistics.fmean(finite[count:]) < statistics.fmean(finite[:count])

    return {kind: falls(kind) for kind in ("text", "image", "speech")}


def _table(held_out: dict[str, Any], bounds: Mapping[str, float]) -> str:
    """The scores that have a bound, for the terminal."""
    lines = [f"{'held-out':10} {'measured':>9} {'bound':>9}"]
    from aromni_jax.evaluation.held_out import bounds_met

    for name, verdict in bounds_met(held_out, bounds).items():
        mark = "ok" if verdict["passed"] else "MISSED"
        lines.append(f"{name:10} {verdict['value']:9.1%} {verdict['bound']:9.1%}  {mark}")
    return "\n".join(lines)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
