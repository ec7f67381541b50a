"""`aromni evaluate`: held-out scores of a model in its world, by judges that know nothing of it."""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aromni_jax.errors import UserError
from aromni_jax.worlds import WORLDS

if TYPE_CHECKING:
    from aromni_jax.evaluation.judges import SpeechJudge
    from aromni_jax.evaluation.standards import Standard
    from aromni_jax.tasks import Assistant

EXAMPLE = "aromni evaluate --model numbers --out runs/scores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--model", default="numbers", help="model or run folder, or a shipped one: numbers or things")
    parser.add_argument("--world", choices=WORLDS, help="where to judge it (default: where it was trained)")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for scores.json and samples/")
    add_judge_arguments(parser)


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Who judges; shared with `aromni demo`."""
    parser.add_argument(
        "--judges",
        nargs="+",
        choices=["moonshine", "pocketsphinx", "whisper"],
        help="recognisers that judge speech; the first gives the headline figures (default: the world's; numbers: "
        "moonshine pocketsphinx)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes scores.json and samples/."""
    from aromni_jax import store
    from aromni_jax.convert import open_source
    from aromni_jax.tasks import Assistant

    with open_source(args.model) as source:
        trained_in = source.metadata["world"]
    world = args.world or trained_in
    if world not in WORLDS:
        raise UserError(
            f"{args.model}: trained in {world or 'a world that it does not name'}; say where to judge it with --world "
            f"{' or '.join(WORLDS)}"
        )
    if trained_in in WORLDS and trained_in != world:
        raise UserError(
            f"{args.model}: trained in {trained_in}, whose codecs have other pictures than {world}: leave --world out"
        )
    assistant = Assistant.load(args.model, world=trained_in or world)
    scores = judged(assistant, world, args.judges, args.out / "samples")
    args.out.mkdir(parents=True, exist_ok=True)
    store.write_json(args.out / "scores.json", scores)
    print(f"written: {args.out / 'scores.json'}")
    return 0


def judged(assistant: Assistant, world: str, judges: Sequence[str] | None, samples: pathlib.Path) -> dict[str, Any]:
    """Evaluate, write the samples, and return the scores with the seconds it took; `judges` None = the world's."""
    from aromni_jax.evaluation.held_out import evaluate
    from aromni_jax.evaluation.samples import write_samples
    from aromni_jax.evaluation.standards import standard_of
    from aromni_jax.worlds import load_world

    started = time.perf_counter()
    standard, media = standard_of(world), load_world(world)
    listening = [make_judge(name, standard) for name in judges or standard.speech_judges]
    scores, items = evaluate(assistant, media, standard, listening, standard.make_image_judge(media))
    write_samples(samples, assistant, items)
    return {**scores, "seconds": time.perf_counter() - started}


def make_judge(name: str, standard: Standard) -> SpeechJudge:
    """The recogniser of that name; UserError if it does not know the words, or its package is missing."""
    from aromni_jax.evaluation.judges import FREE_DICTATION, SPEECH_JUDGES

    if name not in (*FREE_DICTATION, *standard.speech_judges):
        raise UserError(f"--judges {name}: it knows other words than this world's; use {' or '.join(FREE_DICTATION)}")
    return SPEECH_JUDGES[name]()
