"""`aromni compile`: the engine's programs compiled for TPUs that are not there."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import pathlib

from aromni_jax.errors import UserError

EXAMPLE = "aromni compile --mode decode --topology v5e:2x4 --model ar-omni --out runs/compile.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--mode", required=True, choices=("decode",), help="decode: prefill and a chunk of steps")
    parser.add_argument("--topology", required=True, nargs="+", metavar="NAME", help="v5e:2x4, v6e:2x4, v5p:2x2x1, ...")
    parser.add_argument("--model", default="ar-omni", help="a published shape (ar-omni, chameleon-34b, ...)")
    parser.add_argument("--layers", type=_positive, help="only so many layers (default: the model's)")
    parser.add_argument("--fsdp", type=_positive, default=1, help="devices over which rows and weights are split (1)")
    parser.add_argument("--batch", type=_positive, default=8, help="rows (8)")
    parser.add_argument("--length", type=_positive, default=2048, help="slots of the cache (2048)")
    parser.add_argument("--prompt", type=_positive, default=1024, help="tokens of a prompt (1024)")
    parser.add_argument("--steps", type=_positive, default=32, help="decoding steps of a chunk (32)")
    parser.add_argument(
        "--cache-dtype",
        nargs="+",
        default=["bfloat16"],
        choices=("float32", "bfloat16", "int8"),
        help="of the key/value cache; several make a line each (bfloat16)",
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json", help="the figures; a table goes beside them")


def run(args: argparse.Namespace) -> int:
    """Prints the table; with --out also writes it and its figures. Exit code 1 if a program does not fit."""
    import dataclasses

    import jax

    from aromni_jax import store
    from aromni_jax.compile import Shape, compile_decoding, markdown, target
    from aromni_jax.config import MeshConfig
    from aromni_jax.model import PRESETS
    from aromni_jax.vocabulary import JointVocabulary

    if args.model not in PRESETS:
        raise UserError(f"no published model {args.model!r}: use one of {', '.join(PRESETS)}")
    if args.prompt > args.length:
        raise UserError(f"a prompt of {args.prompt} tokens does not fit a cache of {args.length} slots")
    jax.config.update("jax_platforms", "cpu")
    config = PRESETS[args.model]
    config = dataclasses.replace(config, layers=args.layers or config.layers)
    rows = []
    for name in args.topology:
        where = target(name)
        for cache_dtype in args.cache_dtype:
            shape = Shape(args.batch, args.length, args.prompt, args.steps, cache_dtype)
            mesh = MeshConfig(fsdp=args.fsdp, tensor=-1)
            rows.append(compile_decoding(where, config, JointVocabulary.aromni(), mesh, shape))
            print(f"{name}, {cache_dtype}: compiled", flush=True)
    table = f"# {args.model}, decoding\n\n{markdown(rows)}"
    if args.out:
        result = {
            "model": args.model,
            "layers": config.layers,
            "rows": rows,
            "versions": {name: importlib.metadata.version(name) for name in ("aromni_jax", "jax", "libtpu")},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        made_with = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        table += f"\n{result['date']}; {made_with}.\n"
        args.out.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(args.out, result)
        store.write_text(args.out.with_suffix(".md"), table)
    print(table, end="")
    return 0 if all(row[name]["fits"] for row in rows for name in ("prefill", "decode") if name in row) else 1


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
