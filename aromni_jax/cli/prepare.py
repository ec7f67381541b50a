"""`aromni prepare`: raw media or token shards -> a data set that `aromni train` reads."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aromni_jax.errors import UserError
from aromni_jax.worlds import WORLDS

if TYPE_CHECKING:
    from aromni_jax.data import Manifest

EXAMPLE = "aromni prepare photos/ --codecs things --out runs/photos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "source",
        help=f"{' or '.join(WORLDS)} (worlds of the package); a folder of pictures, sound or text files with captions "
        "or transcripts (name.txt, metadata.jsonl, metadata.csv); *.tar (WebDataset), *.parquet, *.jsonl of ids, or a "
        "folder of them; tfds:NAME",
    )
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, metavar="DIR", help="the data set; made whole or not"
    )
    parser.add_argument(
        "--sequence-length", type=int, metavar="N", help="tokens per packed row (the world's; else 4096)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace a data set that was made otherwise")
    parser.add_argument(
        "--codecs",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="a folder of codecs or the name of a world; or text=PATH image=PATH speech=PATH, where the text codec may "
        "be a tokenizer.json of the official layout",
    )
    parser.add_argument("--template", help="prompt layout: brief or aromni (default: brief; official layout: aromni)")
    world = parser.add_argument_group("worlds")
    world.add_argument("--examples", type=int, metavar="N", help="for training (numbers: 80000)")
    world.add_argument("--held-out", type=int, metavar="N", help="held out (numbers: 420)")
    world.add_argument(
        "--mixture", nargs="+", default=[], metavar="TASK=SHARE", help="shares of the examples (default: all tasks)"
    )
    other = parser.add_argument_group("other sources (the same command goes on where it stopped)")
    other.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="to make (default: all that can be)")
    other.add_argument(
        "--columns", nargs="+", default=[], metavar="KIND=NAME", help="text=, image= or speech= of a table"
    )
    other.add_argument(
        "--held-out-every", type=int, default=100, metavar="N", help="one in so many items, if there is no test split"
    )
    other.add_argument("--on-bad-record", choices=("skip", "stop"), default="skip", help="default: skip, and count")
    other.add_argument("--vocabulary", default="aromni", metavar="aromni|PATH", help="of ids (default: aromni)")
    other.add_argument(
        "--beam", nargs=argparse.REMAINDER, default=[], metavar="OPTION", help="all that follows goes to Apache Beam"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0."""
    manifest = _world(args) if args.source in WORLDS else _corpus(args)
    for split in manifest.splits:
        figures = manifest.figures(split)
        print(
            f"{args.out} {split}: {figures['examples']:,} examples, {figures['tokens']:,} tokens in "
            f"{figures['row_count']:,} rows of {manifest.sequence_length} ({figures['packing']['packed']:.1%} full)"
        )
    if not manifest.splits["test"]:
        print(
            f"{args.out}: nothing is held out, and training evaluates on that: give --held-out-every a smaller number"
        )
    if rejected := manifest.statistics.get("rejected"):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.statistics["rejects"].items())
        print(f"{args.out}: {rejected:,} rejected ({reasons}); rejects.jsonl names them")
    return 0


def _world(args: argparse.Namespace) -> Manifest:
    from aromni_jax.prepare import Codecs, prepare_world
    from aromni_jax.prepare.world import MIXTURE

    return prepare_world(
        args.source,
        args.out,
        examples=args.examples,
        held_out=args.held_out,
        template=args.template or "brief",
        mixture=_mixture(args.mixture) or MIXTURE,
        codecs=Codecs.load(_places(args.codecs)) if args.codecs else None,
        seed=args.seed,
        sequence_length=args.sequence_length,
        force=args.force,
    )


def _corpus(args: argparse.Namespace) -> Manifest:
    from aromni_jax.cli.inspect import named_vocabulary
    from aromni_jax.prepare import prepare_corpus
    from aromni_jax.prepare.columns import Columns
    from aromni_jax.prepare.sources import open_source
    from aromni_jax.prepare.world import SIZES

    if pathlib.Path(args.source).resolve() in args.out.resolve().parents:
        raise UserError(f"--out {args.out} lies in {args.source}, and would be read as data the next time: move it")
    source = open_source(args.source, Columns.parse(args.columns))
    sizes = SIZES.get(args.codecs[0]) if args.codecs else None
    return prepare_corpus(
        source,
        args.out,
        codecs=_places(args.codecs) if args.codecs else None,
        vocabulary=None if source.needs else named_vocabulary(args.vocabulary),
        template=args.template,
        tasks=args.tasks,
        sequence_length=(
            (sizes.sequence_length if sizes else 4096) if args.sequence_length is None else args.sequence_length
        ),
        held_out_every=args.held_out_every,
        seed=args.seed,
        on_bad_record=args.on_bad_record,
        force=args.force,
        beam_options=args.beam,
    )


def _places(words: Sequence[str]) -> dict[str, str]:
    """Where each codec is."""
    kinds = ("text", "image", "speech")
    if len(words) == 1 and "=" not in words[0]:
        return dict.fromkeys(kinds, words[0])
    places: dict[str, Any] = dict(word.partition("=")[::2] for word in words)
    if set(places) != set(kinds):
        raise UserError(f"--codecs {' '.join(words)}: give one place, or text=PATH image=PATH speech=PATH")
    return places


def _mixture(words: list[str]) -> dict[str, float]:
    shares = {}
    for word in words:
        task, _, share = word.partition("=")
        try:
            shares[task] = float(share)
        except ValueError:
            raise UserError(f"--mixture {word}: write it as TASK=SHARE, such as chat=0.5") from None
    return shares
