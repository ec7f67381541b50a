"""What it costs to decode speech while its codes come in: streams beside whole-utterance decoding, by sizes of windows.

Real speech (the held-out part of the world of numbers, strung together) is coded, and its codes are decoded twice: at
once, and as a stream that gets them one by one. Two figures tell how far the stream's samples are from the others:

- log-spectral distance, dB: what an ear could notice. Phases do not count.
- signal-to-noise ratio, dB: phases count. A codec that finds its phases anew in every window (the small one) cannot
  have a high one, and need not.

    python benchmarks/streaming_codec.py --out benchmarks/results/streaming_numbers.json
    python benchmarks/streaming_codec.py --codec tests/data/golden/g6_speech_codec \
        --out benchmarks/results/streaming_wavtokenizer.json

The second has random weights: it shows how the error falls with the sizes, not what an ear would hear of trained ones.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import soxr
from machine import hardware, versions

from aromni_jax import store
from aromni_jax.codecs import SpeechCodec
from aromni_jax.codecs.measure import held_out_utterances, log_spectral_distance, signal_to_noise
from aromni_jax.errors import UserError
from aromni_jax.worlds.numbers import NumbersWorld

WINDOWS = (32, 48, 64, 96, 128, 192)
LOOKAHEADS = (0, 1, 2, 4, 8, 16)
FIRSTS = (2, 4, 8, 16)
FIRSTS_WINDOW = 128
STEP = 16
WORLD_RATE = 16_000
PACKAGES = ("aromni_jax", "jax", "jaxlib", "flax", "numpy")


def speech_waves(codec: SpeechCodec, seconds: float, rows: int) -> tuple[np.ndarray, list[int]]:
    """Held-out utterances strung together to rows of about that length: float32 [rows, n], and samples per row."""
    utterances = itertools.cycle(held_out_utterances(NumbersWorld.load(), 16 * rows))
    waves = []
    for _ in range(rows):
        pieces: list[np.ndarray] = []
        while sum(map(len, pieces)) < seconds * WORLD_RATE:
            pieces.append(next(utterances))
        waves.append(soxr.resample(np.concatenate(pieces), WORLD_RATE, codec.sample_rate, quality="HQ"))
    wave_bn = np.zeros((rows, max(map(len, waves))), np.float32)
    for row, wave in zip(wave_bn, waves, strict=True):
        row[: len(wave)] = wave
    return wave_bn, [len(wave) for wave in waves]


def streamed(codec: SpeechCodec, codes_t: np.ndarray, **sizes: int) -> tuple[np.ndarray, int]:
    """Samples of a stream that gets one code at a time, and how many codes it had when the first sample came."""
    stream, pieces, needed = codec.stream(**sizes), [], 0
    for count, code in enumerate(codes_t, 1):
        piece = stream.push([code])
        needed = needed or (count if len(piece) else 0)
        pieces.append(piece)
    return np.concatenate([*pieces, stream.close()]), needed


def errors(
    codec: SpeechCodec, rows: Sequence[np.ndarray], wholes: Sequence[np.ndarray], **sizes: int
) -> dict[str, Any]:
    """Means over the rows, of all samples and of the first part's."""
    spectral, noise, first = [], [], []
    waves = [streamed(codec, codes_t, **sizes) for codes_t in rows]
    for whole, (wave, _) in zip(wholes, waves, strict=True):
        spectral.append(log_spectral_distance(whole, wave))
        noise.append(signal_to_noise(whole, wave))
        part = sizes["first"] * codec.hop
        first.append(log_spectral_distance(whole[:part], wave[:part]))
    needed = max(needed for _, needed in waves)
    return {
        **sizes,
        "distance_db": round(float(np.mean(spectral)), 2),
        "snr_db": round(float(np.mean(noise)), 1),
        "first_part_distance_db": round(float(np.mean(first)), 2),
        "first_audio_codes": needed,
        "first_audio_ms": round(1000 * needed / codec.tokens_per_second),
    }


def run(path: str, seconds: float, rows: int) -> dict[str, Any]:
    """Both grids: windows by look-aheads, and first parts by look-aheads."""
    codec = SpeechCodec.load(path)
    codes = codec.encode(*speech_waves(codec, seconds, rows))
    wholes = codec.decode(codes)

    def cell(**sizes: int) -> dict[str, Any]:
        result = errors(codec, codes, wholes, **sizes)
        print(result, file=sys.stderr, flush=True)
        return result

    shuffled = codec.decode([np.random.default_rng(0).permutation(row) for row in codes])
    scale = [log_spectral_distance(*pair) for pair in zip(wholes, shuffled, strict=True)]
    return {
        "codec": {
            "path": path,
            "fingerprint": codec.fingerprint,
            "network": codec.network.architecture,
            "hop": codec.hop,
        },
        "speech": {"rows": rows, "codes": [len(row) for row in codes]},
        "shuffled_codes_distance_db": round(float(np.mean(scale)), 2),
        "windows": [
            cell(window=window, lookahead=lookahead, first=STEP, step=STEP)
            for window, lookahead in itertools.product(WINDOWS, LOOKAHEADS)
            if window >= STEP + lookahead
        ],
        "firsts": [
            cell(window=FIRSTS_WINDOW, lookahead=lookahead, first=first, step=STEP)
            for first, lookahead in itertools.product(FIRSTS, LOOKAHEADS)
        ],
        "hardware": hardware(),
        "versions": versions(PACKAGES),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def markdown(result: dict[str, Any]) -> str:
    """Two tables, look-ahead to the right."""

    def grid(cells: Sequence[dict[str, Any]], name: str, figures: Sequence[tuple[str, str]], title: str) -> list[str]:
        looks = sorted({cell["lookahead"] for cell in cells})
        lines = [f"| {title} | " + " | ".join(map(str, looks)) + " |", "|---" * (len(looks) + 1) + "|"]
        for value in sorted({cell[name] for cell in cells}):
            row = {cell["lookahead"]: cell for cell in cells if cell[name] == value}
            texts = [" / ".join(f"{row[look][key]:{form}}" for key, form in figures) for look in looks]
            lines.append(f"| {value} | " + " | ".join(texts) + " |")
        return lines

    codec, codes = result["codec"], result["speech"]["codes"]
    return "\n".join(
        [
            f"Codec {codec['path']} ({codec['network']}, {codec['hop']} samples per code, fingerprint "
            f"{codec['fingerprint']}); {len(codes)} rows of {min(codes)}..{max(codes)} codes of held-out speech.",
            "",
            f"Log-spectral distance from whole decoding, dB / signal-to-noise ratio, dB; parts of {STEP} codes. For "
            f"scale: the same codes in another order are {result['shuffled_codes_distance_db']} dB away.",
            "",
            *grid(result["windows"], "window", [("distance_db", ".2f"), ("snr_db", ".1f")], "window \\ look-ahead"),
            "",
            f"First parts, window {FIRSTS_WINDOW}: log-spectral distance of their samples, dB / codes until they come "
            "/ milliseconds of speech in these codes.",
            "",
            *grid(
                result["firsts"],
                "first",
                [("first_part_distance_db", ".2f"), ("first_audio_codes", "d"), ("first_audio_ms", "d")],
                "first \\ look-ahead",
            ),
            "",
            f"{result['hardware']['processor']}; {result['date']}; "
            + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            + ".",
            "",
        ]
    )


def main() -> int:
    """Exit code 0, or 1 with one line of reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="numbers", metavar="FOLDER", help="of a speech codec (the shipped one)")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.json", help="a .md goes beside it")
    parser.add_argument("--seconds", type=float, default=6.0, help="of every row (6)")
    parser.add_argument("--rows", type=int, default=4, help="of speech (4)")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        result = run(args.codec, args.seconds, args.rows)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(args.out, result)
        table = markdown(result)
        store.write_text(args.out.with_suffix(".md"), f"# Streaming decode of speech\n\n{table}")
    except (UserError, OSError) as error:
        print(f"streaming_codec: {error}", file=sys.stderr)
        return 1
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
