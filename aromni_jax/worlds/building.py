"""What the builders of worlds share: packages fetched by name and checked, clips trimmed, files written.

Packages come through their ordinary clients (pip, npm, apt-get) and are checked against known sums.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aromni_jax.errors import UserError
from aromni_jax.worlds.world import SAMPLE_RATE

HIBARI = ("hibari-tts", "0.2.1")
HIBARI_SHA256 = "49f2abbbe451c988e7448b5afa08c8a56410535ebb855c0e7d174275df5ca1f3"


def client(command: list[str], where: Path) -> None:
    """Runs a package client in `where`; one clear line if it is missing or fails."""
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]}: not found: install it, or keep the media that ship with the package")
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command)}: failed: {reason}")


def fetched(where: Path, pattern: str, sha256: str) -> Path:
    """The file that a client brought, its sum compared."""
    found = sorted(where.glob(pattern))
    if not found:
        raise UserError(f"{pattern}: the client brought no such file: is the package still published?")
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != sha256:
        raise UserError(f"{found[0].name}: not the file these media were made from: pin the version again")
    return found[0]


def needs(module: str, install: str) -> Any:
    """The module, which only the build needs; UserError with the line to type if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the build needs {module}: type  pip install {install}") from error


def hibari(work: Path, out: Path) -> Any:
    """The synthetic voice hibari, `speaker(text, speed=, seed=)` -> float32 [n] at `speaker.sample_rate`.

    Its licence and notice go to out/licences.
    """
    package, version = HIBARI
    client([sys.executable, "-m", "pip", "download", "--no-deps", f"{package}=={version}"], work)
    with zipfile.ZipFile(fetched(work, "hibari_tts-*.whl", HIBARI_SHA256)) as wheel:
        wheel.extractall(work / "hibari")
    needs("onnxruntime", "onnxruntime")
    for text in ("LICENSE", "NOTICE"):
        found = next((work / "hibari").glob(f"hibari_tts-*/licenses/{text}"))
        copy(found, out / "licences" / f"hibari-tts.{text}.txt")
    sys.path.insert(0, str(work / "hibari"))
    try:
        return importlib.import_module("hibari").Hibari()
    finally:
        sys.path.remove(str(work / "hibari"))


def trim(wave_n: np.ndarray, *, start_db: float = 36.0, end_db: float = 30.0, keep: float = 0.015) -> np.ndarray:
    """Cuts silence off both ends of a clip [n], fades the edges, and levels it to an RMS of 0.08.

    Silence is what lies `start_db` (`end_db`) below the loudest 5 ms; `keep` seconds stay around the rest.
    The end is cut closer, because breath after a word is heard as another word.
    """
    window = SAMPLE_RATE // 200
    power = np.convolve(wave_n.astype(np.float64) ** 2, np.ones(window) / window, "same")
    level_db = 10 * np.log10(power / power.max() + 1e-12)
    margin = int(keep * SAMPLE_RATE)
    start = max(0, np.flatnonzero(level_db > -start_db)[0] - margin)
    stop = min(wave_n.size, np.flatnonzero(level_db > -end_db)[-1] + margin)
    clip = wave_n[start:stop].astype(np.float64)
    rise, fall = SAMPLE_RATE // 200, SAMPLE_RATE // 50
    clip[:rise] *= np.linspace(0, 1, rise)
    clip[-fall:] *= np.linspace(1, 0, fall)
    clip *= 0.08 / np.sqrt(np.mean(clip**2))
    return clip.clip(-0.99, 0.99).astype(np.float32)


def sums(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Writes one value; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=indent)
    path.write_text(text + "\n", encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    """Copies one file; folders are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@contextlib.contextmanager
def new_media(out: Path) -> Iterator[tuple[Path, Path]]:
    """Scratch folder and media folder; when the block ends well the media take their place at `out`, whole.

    Raises UserError when `out` holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty: give a new folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        work, made = Path(scratch) / "work", Path(scratch) / "media"
        work.mkdir()
        made.mkdir()
        yield work, made
        if out.exists():
            out.rmdir()
        made.rename(out)


def main(world: str, build: Callable[[Path], None], argv: list[str] | None = None) -> int:
    """Command line of a world's build: --out DIR."""
    parser = argparse.ArgumentParser(description=f"Rebuild the media of the {world} world.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make (new or empty)")
    arguments = parser.parse_args(argv)
    try:
        build(arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
