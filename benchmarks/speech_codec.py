"""WavTokenizer: what bfloat16 does to codes and waves, and how fast the published size is on this machine.

The agreement is of a codec folder's weights on real speech (the held-out part of the world of numbers). The speed is
of the published size with random weights, which do not matter to it: seconds of speech per second, whole calls of
`encode` and `decode` with numpy in and out, median of repeats after one that compiles.

    python benchmarks/speech_codec.py --codec tests/data/golden/g6_speech_codec \
        --out benchmarks/results/speech_codec.json
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from machine import CpuUse, hardware, versions
from streaming_codec import PACKAGES, speech_waves

from aromni_jax import store
from aromni_jax.codecs import SpeechCodec, vq
from aromni_jax.codecs.measure import log_spectral_distance, signal_to_noise
from aromni_jax.codecs.wavtokenizer import WavTokenizer, WavTokenizerConfig
from aromni_jax.errors import UserError

DTYPES = ("float32", "bfloat16")


def agreement(path: str, seconds: float, rows: int) -> dict[str, Any]:
    """Share of codes that bfloat16 leaves as they are, and what it does to the wave of the same codes."""
    full, half = (SpeechCodec.load(path, dtype=dtype) for dtype in DTYPES)
    waves, lengths = speech_waves(full, seconds, rows)
    codes, other = full.encode(waves, lengths), half.encode(waves, lengths)
    pairs = list(zip(full.decode(codes), half.decode(codes), strict=True))
    return {
        "path": path,
        "codes": int(sum(map(len, codes))),
        "same_codes": round(float(np.mean(np.concatenate(codes) == np.concatenate(other))), 4),
        "distance_db": round(float(np.mean([log_spectral_distance(*pair) for pair in pairs])), 2),
        "snr_db": round(float(np.mean([signal_to_noise(*pair) for pair in pairs])), 1),
    }


def published_size(dtype: str) -> SpeechCodec:
    """The published config with random weights."""
    network = WavTokenizer(WavTokenizerConfig(), dtype)
    book = jax.random.normal(jax.random.key(0), (network.config.codes, network.config.embed))
    return SpeechCodec(network, {"net": vq.init(network.build, 0), "codebook": book}, "random weights")


def speed(call: Callable[[], Any], seconds: float, repeats: int) -> float:
    """Seconds of speech per second."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return round(seconds / statistics.median(times), 1)


def speeds(dtype: str, sizes: list[tuple[int, float]], repeats: int) -> list[dict[str, Any]]:
    """One cell per (rows, seconds of each)."""
    codec, cells = published_size(dtype), []
    for rows, seconds in sizes:
        wave_bn = np.random.default_rng(0).normal(0, 0.1, (rows, round(seconds * codec.sample_rate)))
        codes = codec.encode(wave_bn)
        cell = {
            "dtype": dtype,
            "rows": rows,
            "seconds": seconds,
            "encode": speed(lambda wave_bn=wave_bn: codec.encode(wave_bn), rows * seconds, repeats),
            "decode": speed(lambda codes=codes: codec.decode(codes), rows * seconds, repeats),
        }
        print(cell, file=sys.stderr, flush=True)
        cells.append(cell)
    return cells


def run(path: str, sizes: list[tuple[int, float]], dtypes: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Both parts."""
    cpu = CpuUse()
    return {
        "agreement": agreement(path, seconds=6.0, rows=8),
        "speeds": list(itertools.chain(*(speeds(dtype, sizes, repeats) for dtype in dtypes))),
        "repeats": repeats,
        "device": str(jax.devices()[0].device_kind),
        "busy": cpu.share_of_others(),
        "hardware": hardware(),
        "versions": versions(PACKAGES),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def markdown(result: dict[str, Any]) -> str:
    """A paragraph and a table."""
    same, busy = result["agreement"], result["busy"]
    return "\n".join(
        [
            f"bfloat16 beside float32, {same['path']}: {100 * same['same_codes']:.1f} % of {same['codes']} codes are "
            f"equal; the waves of the same codes are {same['distance_db']} dB apart (log-spectral distance; "
            f"{same['snr_db']} dB signal to noise).",
            "",
            "Published size, seconds of speech per second:",
            "",
            "| dtype | rows x seconds | encode | decode |",
            "|---|---|---|---|",
            *(
                f"| {cell['dtype']} | {cell['rows']} x {cell['seconds']:g} | {cell['encode']} | {cell['decode']} |"
                for cell in result["speeds"]
            ),
            "",
            f"Median of {result['repeats']} repeats; {result['device']}, {result['hardware']['processor']}, "
            f"{result['hardware']['threads']} threads; {result['date']}; "
            + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            + (f". Meanwhile other programs used {100 * busy:.0f} % of the CPU." if busy is not None else "."),
            "",
        ]
    )


def main() -> int:
    """Exit code 0, or 1 with one line of reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", required=True, metavar="FOLDER", help="of WavTokenizer files")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.json", help="a .md goes beside it")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4], help="of a batch (1 4)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a row (10)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="whose speed is measured (both)")
    parser.add_argument("--repeats", type=int, default=3, help="of every call (3)")
    args = parser.parse_args()
    try:
        result = run(args.codec, [(rows, args.seconds) for rows in args.rows], tuple(args.dtypes), args.repeats)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(args.out, result)
        table = markdown(result)
        store.write_text(args.out.with_suffix(".md"), f"# WavTokenizer\n\n{table}")
    except (UserError, OSError) as error:
        print(f"speech_codec: {error}", file=sys.stderr)
        return 1
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
