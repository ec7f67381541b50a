"""`aromni prepare`: raw media or token shards -> a data set that `aromni train` reads."""

from __future__ import annotations

import argparse
import pathlib

from aromni_jax.errors import UserError
from aromni_jax.worlds import WORLDS

EXAMPLE = "aromni prepare numbers --out runs/numbers --examples 40000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("source", help=f"{' or '.join(WORLDS)} (worlds of the package), or a *.jsonl file or folder")
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, metavar="DIR", help="the data set; made whole or not"
    )
    parser.add_argument(
        "--sequence-length", type=int, metavar="N", help="tokens per packed row (the world's; shards: 4096)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace a data set that was made otherwise")
    world = parser.add_argument_group("worlds")
    world.add_argument("--examples", type=int, metavar="N", help="for training (numbers: 80000)")
    world.add_argument("--held-out", type=int, metavar="N", help="held out (numbers: 420)")
    world.add_argument("--template", default="brief", help="prompt layout: brief or aromni (default: brief)")
    world.add_argument(
        "--mixture", nargs="+", default=[], metavar="TASK=SHARE", help="shares of the examples (default: all tasks)"
    )
    world.add_argument("--codecs", metavar="DIR", help="codecs other than those of the world")
    shards = parser.add_argument_group("token shards")
    shards.add_argument("--on-bad-record", choices=("stop", "skip"), default="stop")


def run(args: argparse.Namespace) -> int:
    """Exit code 0."""
    from aromni_jax.prepare import Codecs, prepare_shards, prepare_world
    from aromni_jax.prepare.world import MIXTURE
    from aromni_jax.vocabulary import JointVocabulary

    common = {"seed": args.seed, "force": args.force}
    if args.sequence_length:
        common["sequence_length"] = args.sequence_length
    if args.source in WORLDS:
        manifest = prepare_world(
            args.source,
            args.out,
            examples=args.examples,
            held_out=args.held_out,
            template=args.template,
            mixture=_mixture(args.mixture) or MIXTURE,
            codecs=Codecs.load(args.codecs) if args.codecs else None,
            **common,
        )
    else:
        vocabulary = JointVocabulary.aromni()
        manifest = prepare_shards(
            args.source, args.out, vocabulary=vocabulary, on_bad_record=args.on_bad_record, **common
        )
    for split in manifest.splits:
        figures = manifest.figures(split)
        print(
            f"{args.out} {split}: {figures['examples']:,} examples, {figures['tokens']:,} tokens in "
            f"{figures['row_count']:,} rows of {manifest.sequence_length} ({figures['packing']['packed']:.1%} full)"
        )
    return 0


def _mixture(words: list[str]) -> dict[str, float]:
    shares = {}
    for word in words:
        task, _, share = word.partition("=")
        try:
            shares[task] = float(share)
        except ValueError:
            raise UserError(f"--mixture {word}: write it as TASK=SHARE, such as chat=0.5") from None
    return shares
