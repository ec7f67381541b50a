"""A 7B checkpoint there and back: Hugging Face -> Orbax -> Hugging Face, beside a plain copy of its files.

    python benchmarks/convert_7b.py --folder scratch --out benchmarks/results/convert_7b.json

The checkpoint is made up from a seed, shard by shard, in AR-Omni's own layout (14 GB of bfloat16; no download). Every
step is a process of its own whose largest memory is taken from the system; files are dropped from the page cache
before each step and written through to the disk within its time.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from machine import CpuUse, hardware, versions

from aromni_jax import store
from aromni_jax.convert import Source, convert
from aromni_jax.convert.layouts import Piece
from aromni_jax.model import PRESETS
from aromni_jax.tensorfile import Shaped
from aromni_jax.vocabulary import JointVocabulary

_BF16 = np.dtype(ml_dtypes.bfloat16)
_COPIES = 3  # of the checkpoint that the disk holds at once
_MOST_GB = 4.0  # of memory


class Seeded(Source):
    """A model of a preset's shape: bits from a seed and the name of each piece."""

    layout = "memory"

    def __init__(self, preset: str, layers: int | None) -> None:
        config = PRESETS[preset]
        self.config = dataclasses.replace(config, layers=layers or config.layers)
        self.path, self.assets, self.warnings = pathlib.Path(preset), {}, []
        self.vocabulary = JointVocabulary.aromni()
        self.metadata: Mapping[str, Any] = {"world": None, "template": None}

    def read(self, piece: Piece) -> np.ndarray:
        """Finite bfloat16 numbers below 2 in size; all heads share their QK-norm vector."""
        shared = piece.spec.axes[-1] == "head_dim" and len(piece.spec.axes) == 2
        shape = piece.spec.shape[1:] if shared else piece.spec.shape
        rng = np.random.default_rng(zlib.crc32(piece.label.encode()))
        bits = rng.integers(0, 2**16, shape, np.uint16) & np.uint16(0xBFFF)
        return np.ascontiguousarray(np.broadcast_to(bits.view(_BF16), piece.spec.shape))

    def dtype(self, piece: Piece) -> np.dtype:
        return _BF16

    @property
    def passengers(self) -> Mapping[str, Shaped]:
        return {}

    def read_passenger(self, name: str) -> np.ndarray:
        raise KeyError(name)


def main() -> None:
    """Make the checkpoint, copy it, convert it there and back, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where to make a scratch folder")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--preset", choices=list(PRESETS), default="chameleon-7b")
    parser.add_argument("--layers", type=int, help="fewer layers than the preset, for a first look")
    args = parser.parse_args()
    source = Seeded(args.preset, args.layers)
    size = source.bytes()
    args.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.folder).free
    if free < 1.1 * _COPIES * size:
        sys.exit(f"{args.folder}: {free / 1e9:.0f} GB free; {1.1 * _COPIES * size / 1e9:.0f} GB are needed")
    use = CpuUse()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        steps, before, after = _there_and_back(pathlib.Path(scratch), args.preset, args.layers)
    others = use.share_of_others()
    result = {
        "preset": args.preset,
        "layers": source.config.layers,
        "gigabytes": size / 1e9,
        "files": len(before),
        "sha256_equal": before == after,
        "steps": {name: {**step, "mb_per_s": size / 1e6 / step["seconds"]} for name, step in steps.items()},
        "others_cpu": others,
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(("jax", "orbax-checkpoint", "tensorstore", "numpy")),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(args.out, result)
    print(_markdown(result))
    if before != after:
        sys.exit("the files differ")
    if max(step["peak_gb"] for step in steps.values()) > _MOST_GB:
        sys.exit(f"more than {_MOST_GB} GB of memory")


def _there_and_back(
    folder: pathlib.Path, preset: str, layers: int | None
) -> tuple[dict[str, dict[str, float]], dict[str, str], dict[str, str]]:
    """Figures of each step, and the hashes of the files before and after."""
    first, middle, last = (folder / name for name in ("hf", "orbax", "hf_again"))
    began = time.perf_counter()
    # In a process of its own: children would inherit the high-water mark of this one's memory.
    maker = multiprocessing.get_context("spawn").Process(target=_make, args=(preset, layers, first))
    maker.start()
    maker.join()
    if maker.exitcode:
        sys.exit("the checkpoint could not be made")
    print(f"made the checkpoint in {time.perf_counter() - began:.0f} s", flush=True)
    aromni = [sys.executable, "-m", "aromni_jax.cli.main", "convert"]
    steps = {"copy": _timed(folder, [sys.executable, "-c", _COPY, str(first), str(folder / "copy")])}
    shutil.rmtree(folder / "copy")
    steps["hf -> orbax"] = _timed(folder, [*aromni, str(first), str(middle)])
    steps["orbax -> hf"] = _timed(folder, [*aromni, str(middle), str(last), "--to", "hf-reference"])
    return steps, _hashes(first), _hashes(last)


def _make(preset: str, layers: int | None, folder: pathlib.Path) -> None:
    convert(Seeded(preset, layers), folder, "hf-reference")


_COPY = """
import os, pathlib, shutil, sys
source, target = map(pathlib.Path, sys.argv[1:])
target.mkdir()
for file in sorted(source.iterdir()):
    shutil.copyfile(file, target / file.name)
"""


def _timed(folder: pathlib.Path, command: list[str]) -> dict[str, float]:
    """Seconds of wall time, largest resident memory in GB, of one process and the writing through of its files."""
    _forget(folder)
    began = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    os.sync()
    seconds = time.perf_counter() - began
    peak = usage.ru_maxrss * _RSS_UNIT / 1e9
    print(f"{seconds:.0f} s, {peak:.2f} GB: {' '.join(command[2:])[:80]}", flush=True)
    return {
        "seconds": seconds,
        "peak_gb": peak,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def _forget(folder: pathlib.Path) -> None:
    """Drop every file from the page cache, so that all steps begin at the disk."""
    os.sync()
    if not hasattr(os, "posix_fadvise"):
        return
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _hashes(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of the weight files, read from the disk."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            found[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def _markdown(result: dict[str, Any]) -> str:
    lines = ["| step | seconds | MB/s | speed : plain copy | peak memory |", "|---|---|---|---|---|"]
    for name, step in result["steps"].items():
        ratio = result["steps"]["copy"]["seconds"] / step["seconds"]
        lines.append(
            f"| {name} | {step['seconds']:.1f} | {step['mb_per_s']:,.0f} | {ratio:.2f} | {step['peak_gb']:.2f} GB |"
        )
    same = "equal" if result["sha256_equal"] else "DIFFERENT"
    lines.append(f"\n{result['gigabytes']:.2f} GB in {result['files']} files; SHA-256 of all of them {same}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
