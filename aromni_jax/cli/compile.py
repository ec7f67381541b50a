"""`aromni compile`: the engine's programs and the training step compiled for TPUs that are not there."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
from typing import Any, get_args

from aromni_jax.config import Remat
from aromni_jax.errors import UserError

EXAMPLE = "aromni compile --mode train --topology v5e:16x16 --model ar-omni --batch 1 2 4 --out runs/compile.json"

_SEARCH: dict[str, list[Any]] = {
    "batch": [1, 2, 4, 8],
    "remat": ["full", "qkv", "dots"],
    "mesh": ["fsdp=-1", "fsdp=-1,tensor=2"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "--mode", required=True, choices=("decode", "train"), help="decode: prefill and a chunk of steps; train: a step"
    )
    parser.add_argument("--topology", required=True, nargs="+", metavar="NAME", help="v5e:2x4, v6e:2x4, v5p:2x2x1, ...")
    parser.add_argument("--model", default="ar-omni", help="a published shape (ar-omni, chameleon-34b, ...)")
    parser.add_argument("--layers", type=_positive, help="only so many layers (default: the model's)")
    parser.add_argument(
        "--batch", type=_positive, nargs="+", help="rows; train: of each chip, several make a line each (8; train: 1)"
    )
    parser.add_argument("--length", type=_positive, help="slots of the cache (2048); train: tokens of a row (4096)")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json", help="the figures; a table goes beside them")
    decode = parser.add_argument_group("decode")
    decode.add_argument("--fsdp", type=_positive, default=1, help="devices over which rows and weights are split (1)")
    decode.add_argument("--prompt", type=_positive, default=1024, help="tokens of a prompt (1024)")
    decode.add_argument("--steps", type=_positive, default=32, help="decoding steps of a chunk (32)")
    decode.add_argument(
        "--cache-dtype",
        nargs="+",
        default=["bfloat16"],
        choices=("float32", "bfloat16", "int8"),
        help="of the key/value cache; several make a line each (bfloat16)",
    )
    train = parser.add_argument_group("train")
    train.add_argument(
        "--remat", nargs="+", choices=get_args(Remat), help="what is computed again; several make a line each"
    )
    train.add_argument(
        "--mesh", nargs="+", metavar="AXIS=SIZE,...", help="as fsdp=128,replica=2; several make a line each (fsdp=-1)"
    )
    train.add_argument(
        "--lora", type=_positive, metavar="RANK", help="train adapters of this rank and not the model (model.lora.rank)"
    )
    train.add_argument(
        "--search", action="store_true", help="try batch x remat x mesh (what is not given: a few), the fastest first"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table; with --out also writes it and its figures. Exit code 1 if a program does not fit."""
    import jax

    from aromni_jax.model import PRESETS

    if args.model not in PRESETS:
        raise UserError(f"no published model {args.model!r}: use one of {', '.join(PRESETS)}")
    if args.out:
        _check_out(args.out)
    jax.config.update("jax_platforms", "cpu")
    config = PRESETS[args.model]
    config = dataclasses.replace(config, layers=args.layers or config.layers)
    rows, table = (_train if args.mode == "train" else _decode)(args, config)
    work = "training" if args.mode == "train" else "decoding"
    table = f"# {args.model}, {work}\n\n{table}"
    if args.out:
        result = {
            "model": args.model,
            "layers": config.layers,
            "rows": rows,
            "versions": {name: importlib.metadata.version(name) for name in ("aromni_jax", "jax", "libtpu")},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        _write(args.out, result, table)
    print(table, end="")
    if args.mode == "train":
        return 0 if any(row["fits"] for row in rows) and (args.search or all(row["fits"] for row in rows)) else 1
    return 0 if all(row[name]["fits"] for row in rows for name in ("prefill", "decode") if name in row) else 1


def _decode(args: argparse.Namespace, config: Any) -> tuple[list[dict[str, Any]], str]:
    from aromni_jax.compile import Shape, compile_decoding, markdown, target
    from aromni_jax.config import MeshConfig
    from aromni_jax.vocabulary import JointVocabulary

    batch, length = args.batch or [8], args.length or 2048
    if len(batch) > 1:
        raise UserError("--mode decode takes one --batch")
    if args.prompt > length:
        raise UserError(f"a prompt of {args.prompt} tokens does not fit a cache of {length} slots")
    rows = []
    for name in args.topology:
        where = target(name, launched=True)
        for cache_dtype in args.cache_dtype:
            shape = Shape(batch[0], length, args.prompt, args.steps, cache_dtype)
            mesh = MeshConfig(fsdp=args.fsdp, tensor=-1)
            rows.append(compile_decoding(where, config, JointVocabulary.aromni(), mesh, shape))
            print(f"{name}, {cache_dtype}: compiled", flush=True)
    return rows, markdown(rows)


def _train(args: argparse.Namespace, config: Any) -> tuple[list[dict[str, Any]], str]:
    from aromni_jax.compile import Trial, compile_training, search, target, training_markdown
    from aromni_jax.config import LoraConfig
    from aromni_jax.vocabulary import JointVocabulary

    if args.lora:
        config = dataclasses.replace(config, lora=LoraConfig(rank=args.lora))
    tried: dict[str, list[Any]] = {"batch": [1], "remat": [config.remat], "mesh": ["fsdp=-1"]}
    if args.search:
        tried = _SEARCH
    meshes = [_mesh(text) for text in args.mesh or tried["mesh"]]
    rows = []
    for name in args.topology:
        where = target(name, launched=True)

        def compiled(trial: Trial, where: Any = where) -> dict[str, Any]:
            return compile_training(where, config, JointVocabulary.aromni(), trial, args.length or 4096)

        rows += search(
            where,
            args.batch or tried["batch"],
            args.remat or tried["remat"],
            meshes,
            compiled,
            lambda line: print(line, flush=True),
        )
    return rows, training_markdown(rows)


def _mesh(text: str) -> Any:
    """ "fsdp=128,replica=2" as a MeshConfig."""
    from aromni_jax.config import MeshConfig

    axes = {field.name for field in dataclasses.fields(MeshConfig)}
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in axes or not size.removeprefix("-").isdigit():
            raise UserError(f"--mesh {text!r}: write axis=size,... with axes {', '.join(sorted(axes))}")
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def _check_out(path: pathlib.Path) -> None:
    """UserError before minutes of compiling, not after; makes the folder."""
    if path.suffix == ".md":
        raise UserError(f"--out {path}: that is the table's name; name the figures, FILE.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror}; name another folder") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--out {path}: cannot be written; name another file")


def _write(path: pathlib.Path, result: dict[str, Any], table: str) -> None:
    from aromni_jax import store

    made_with = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    store.write_json(path, result)
    store.write_text(path.with_suffix(".md"), f"{table}\n{result['date']}; {made_with}.\n")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
