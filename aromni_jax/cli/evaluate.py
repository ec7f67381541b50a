"""`aromni evaluate`: held-out scores of a model in the numbers world, by judges that know nothing of it."""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import TYPE_CHECKING, Any

from aromni_jax.errors import UserError

if TYPE_CHECKING:
    from aromni_jax.evaluation.judges import SpeechJudge
    from aromni_jax.tasks import Assistant

EXAMPLE = "aromni evaluate --model numbers --out runs/scores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--model", default="numbers", help="model or run folder, or a shipped one (default: numbers)")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for scores.json and samples/")
    add_judge_arguments(parser)


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Who judges; shared with `aromni demo`."""
    parser.add_argument(
        "--judges",
        nargs="+",
        default=["moonshine", "pocketsphinx"],
        choices=["moonshine", "pocketsphinx", "whisper"],
        help="recognisers that judge speech; the first gives the headline figures (default: moonshine pocketsphinx)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes scores.json and samples/."""
    from aromni_jax import store
    from aromni_jax.tasks import Assistant

    assistant = Assistant.load(args.model)
    scores = judged(assistant, args.judges, args.out / "samples")
    args.out.mkdir(parents=True, exist_ok=True)
    store.write_json(args.out / "scores.json", scores)
    print(f"written: {args.out / 'scores.json'}")
    return 0


def judged(assistant: Assistant, judges: list[str], samples: pathlib.Path) -> dict[str, Any]:
    """Evaluate, write the samples, and return the scores with the seconds it took."""
    from aromni_jax.evaluation.held_out import evaluate
    from aromni_jax.evaluation.judges import DigitImageJudge
    from aromni_jax.evaluation.samples import write_samples

    started = time.perf_counter()
    scores, items = evaluate(assistant, [make_judge(name) for name in judges], DigitImageJudge())
    write_samples(samples, assistant, items)
    return {**scores, "seconds": time.perf_counter() - started}


def make_judge(name: str) -> SpeechJudge:
    """The recogniser of that name; UserError with the line to type if its package is missing."""
    from aromni_jax.evaluation import judges

    kinds = {
        "moonshine": judges.MoonshineJudge,
        "pocketsphinx": judges.PocketSphinxJudge,
        "whisper": judges.WhisperJudge,
    }
    if name not in kinds:
        raise UserError(f"unknown judge {name!r}: use one of {', '.join(kinds)}")
    return kinds[name]()
