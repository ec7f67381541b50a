"""`aromni convert`: a checkpoint of any format -> any other."""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
import time
from typing import Literal

EXAMPLE = "aromni convert AR-Omni-Chat-v0.1 my_model --to hf --dtype bf16"

Dtype = Literal["float32", "bfloat16"]
_DTYPES: dict[str, Dtype] = {"bf16": "bfloat16", "fp32": "float32"}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "source",
        type=pathlib.Path,
        help="run folder (its newest checkpoint), checkpoint, model folder, Hugging Face folder, Meta folder, or the "
        "name of a shipped model",
    )
    parser.add_argument("target", type=pathlib.Path, help="new folder; written whole or not at all")
    parser.add_argument(
        "--to",
        choices=["orbax", "hf", "hf-reference", "meta", "peft"],
        default="orbax",
        help="orbax: a model folder of this project (default); hf: what transformers from PyPI reads; hf-reference: "
        "what AR-Omni's and Anole's training code reads; meta: what AR-Omni's inference code reads; peft: "
        "the adapters of a run alone, for PEFT (the others have them merged)",
    )
    parser.add_argument("--dtype", choices=list(_DTYPES), help="of the stored tensors (default: as they are)")
    parser.add_argument(
        "--shard-size", type=_bytes, default="5GB", metavar="SIZE", help="of Hugging Face's files (default: 5GB)"
    )
    parser.add_argument(
        "--vocabulary",
        type=pathlib.Path,
        metavar="PATH",
        help="model, run or data set with the vocabulary, where the source does not say it and it is not the official",
    )


def run(args: argparse.Namespace) -> int:
    """0 when the folder is written."""
    from tqdm import tqdm

    from aromni_jax.cli.inspect import named_vocabulary
    from aromni_jax.convert import convert, open_source

    vocabulary = named_vocabulary(str(args.vocabulary)) if args.vocabulary else None
    started = time.perf_counter()
    with open_source(args.source, vocabulary) as source:
        dtype = _DTYPES[args.dtype] if args.dtype else None
        total = source.bytes(dtype) if args.to != "peft" else None
        bar = tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr, disable=not sys.stderr.isatty())
        with bar:
            convert(source, args.target, args.to, dtype=dtype, shard_bytes=args.shard_size, progress=bar.update)
        for warning in source.warnings:
            print(f"note: {warning}")
        files = [file for file in args.target.rglob("*") if file.is_file()]
        size, seconds = sum(file.stat().st_size for file in files), time.perf_counter() - started
        stored = args.dtype or ", ".join(sorted({kind.name for _, kind in source.planned()}))
        print(
            f"{args.target}: {source.layout} -> {args.to}, {stored}, {size / 2**20:,.1f} MiB in {len(files)} files, "
            f"{seconds:.1f} s ({size / 1e6 / seconds:,.0f} MB/s)"
        )
    return 0


def _bytes(text: str) -> int:
    """ "5GB" -> 5000000000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)", text.strip().upper())
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500MB or 5GB")
    return int(float(found[1]) * _UNITS[found[2]])
