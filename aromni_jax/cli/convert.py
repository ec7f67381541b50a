"""`aromni convert`: a run or a checkpoint -> a model folder to use or to pass on."""

from __future__ import annotations

import argparse
import pathlib

EXAMPLE = "aromni convert runs/demo my_model --dtype bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "source", type=pathlib.Path, help="run folder (its newest checkpoint), checkpoint, or model folder"
    )
    parser.add_argument("target", type=pathlib.Path, help="new model folder; written whole or not at all")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the stored arrays (default: float32)",
    )


def run(args: argparse.Namespace) -> int:
    """0 when the folder is written."""
    from aromni_jax.convert import load_model, save_model

    model = load_model(args.source)
    save_model(args.target, model.params, model.config, model.vocabulary, model.metadata, dtype=args.dtype)
    size = sum(file.stat().st_size for file in args.target.rglob("*") if file.is_file())
    print(f"{args.target}: {size / 2**20:.1f} MiB, {args.dtype}")
    return 0
