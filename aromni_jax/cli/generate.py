"""`aromni generate`: one task on one or many inputs, real media in and out."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aromni_jax.tasks import Assistant, Options
    from aromni_jax.tasks.batch import Kind

EXAMPLE = 'aromni generate tts --model numbers --input "four two" --out runs/speech'

# Name on the command line -> task, and what an input is.
TASKS: dict[str, tuple[str, Kind]] = {
    "asr": ("speech_to_text", "audio"),
    "tts": ("text_to_speech", "text"),
    "caption": ("image_caption", "image"),
    "t2i": ("text_to_image", "text"),
    "s2i": ("speech_to_image", "audio"),
    "i2s": ("image_to_speech", "image"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "task",
        choices=TASKS,
        help="asr: speech to text; tts: text to speech; caption: picture to text; t2i: text to picture; "
        "s2i: speech to picture; i2s: picture to speech",
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="INPUT",
        help="sound or picture files, or texts (quoted); a *.jsonl file holds one "
        '{"text"|"audio"|"image": ..., "id": ...} per line, a *.txt file one text per line',
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the results and result.json")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    parser.add_argument("--instruction", help="in place of the template's own")
    parser.add_argument("--negative", metavar="TEXT", help="t2i with --guidance-text: what the picture is to be unlike")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model to talk to; shared with `aromni chat`."""
    parser.add_argument("--model", default="numbers", help="model of any format, or a shipped one: numbers or things")
    parser.add_argument("--world", help="folder or name of the codecs, where the model does not say")
    parser.add_argument("--template", help="prompt template, where the model does not say: aromni or brief")
    parser.add_argument(
        "--cache-dtype",
        choices=("float32", "bfloat16", "int8"),
        help="of the key/value cache (default: as the model computes); int8 needs least memory, at a small error",
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How to decode; shared with `aromni chat`."""
    parser.add_argument("--temperature", type=float, help="sampling temperature, 0: greedy (default: the task's own)")
    parser.add_argument("--top-k", type=int, default=0, help="sample among the k best (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample in the nucleus of this mass")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: less repetition")
    parser.add_argument("--guidance-text", type=float, help="text guidance of pictures (the reference: 3.07)")
    parser.add_argument("--guidance-image", type=float, default=1.0, help="image guidance of pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--max-new-tokens", type=int, help="at most so many tokens per answer")


def load_assistant(args: argparse.Namespace) -> Assistant:
    """The model of `add_model_arguments`."""
    from aromni_jax.tasks import Assistant

    return Assistant.load(args.model, world=args.world, template=args.template, cache_dtype=args.cache_dtype)


def read_options(args: argparse.Namespace, task: str) -> Options:
    """The options of `add_sampling_arguments` in the state of the answer, the task's own where none is given."""
    from aromni_jax.decoding import Guidance, Policy
    from aromni_jax.tasks import task_options
    from aromni_jax.tasks.requests import output_state

    options = task_options(task)
    policies = dict(options.policies)
    chosen = Policy(
        greedy=not args.temperature,
        temperature=args.temperature or 1.0,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
    )
    if args.temperature is not None or chosen != Policy(greedy=True):
        policies[output_state(task)] = chosen
    guidance = None if args.guidance_text is None else Guidance(args.guidance_text, args.guidance_image)
    return dataclasses.replace(
        options, policies=policies, guidance=guidance, seed=args.seed, max_new_tokens=args.max_new_tokens
    )


def run(args: argparse.Namespace) -> int:
    """Writes files for each input and result.json. Bad inputs are named and the others done; exit code 1 then.

    The same command goes on where it stopped.
    """
    import tqdm

    from aromni_jax.prepare.media import progress_bar
    from aromni_jax.tasks.batch import RESULT, Job, generate_into, read_items
    from aromni_jax.tasks.requests import tell_negative

    task, kind = TASKS[args.task]
    items = read_items(args.input, kind)
    assistant = load_assistant(args)
    options = dataclasses.replace(read_options(args, task), negative=args.negative)
    options = tell_negative(task, options, assistant.prompts, args.instruction)
    job = Job(task, kind, options, args.instruction)
    good = before = 0
    with progress_bar(len(items), args.task, shown=len(items) > 1) as bar:

        def done(record: dict[str, Any], kept: bool) -> None:
            nonlocal good, before
            name = " ".join(record["id"][:200].split())
            if "error" in record:
                tqdm.tqdm.write(f"{name}: {record['error']}", file=sys.stderr)
            elif not kept:
                tqdm.tqdm.write(f"{name}: {record.get('text') or ', '.join(record['files'])}")
            good, before = good + ("error" not in record), before + kept
            bar.update()

        try:
            generate_into(args.out, assistant, job, items, {"model": str(args.model)}, done)
        except KeyboardInterrupt:
            tqdm.tqdm.write(f"{good} of {len(items)} done: {args.out}; the same command goes on", file=sys.stderr)
            raise
    kept = f" ({before} of them before)" if before else ""
    print(f"{good} of {len(items)} done{kept}: {args.out / RESULT}")
    return 0 if good == len(items) else 1
