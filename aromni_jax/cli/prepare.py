"""`aromni prepare`: raw media -> token records and packed rows."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

EXAMPLE = "aromni prepare numbers --out runs/data --utterances 2000 --pictures 4000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("world", choices=["numbers"], help="where the media come from")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the data set")
    parser.add_argument("--template", default="brief", help="prompt template (default: brief)")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens of a packed row (default: 256)")
    parser.add_argument("--utterances", type=int, help="utterances to compose for training")
    parser.add_argument("--pictures", type=int, help="pictures to compose for training")
    parser.add_argument("--dialogs", type=int, help="dialogs to compose for training")
    parser.add_argument("--seed", type=int, default=0, help="of the composition (default: 0)")
    parser.add_argument("--force", action="store_true", help="make it again even if it is there")


def run(args: argparse.Namespace) -> int:
    """0 when the manifest is written, or was there already."""
    from aromni_jax.prepare import Amounts, prepare_numbers

    given = {name: getattr(args, name) for name in ("utterances", "pictures", "dialogs")}
    prepare_numbers(
        args.out,
        template=args.template,
        sequence_length=args.sequence_length,
        amounts=dataclasses.replace(Amounts(), **{name: value for name, value in given.items() if value is not None}),
        seed=args.seed,
        force=args.force,
    )
    return 0
