"""Speed of WavTokenizer on this CPU: aromni_jax beside PyTorch (`wavtokenizer_torch.py`), in one run.

Both have the same random weights, at the published size, and take the same noise in place of speech, which does not
matter to speed. Before anything is timed, vectors, codes and waves must agree; then they take turns. Utterances are
measured one at a time, and as a batch of mixed lengths. PyTorch takes that one after the other, and as one batch filled
up to the longest, which is what it can do with a batch, and gives it other codes and other sound: how many is told.

    python benchmarks/speech_torch.py --out benchmarks/results/speech_torch.json
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from machine import BUSY, CpuUse, hardware, positive, spread, threads, versions
from output import Say, clocked, write

from aromni_jax.codecs import SpeechCodec, vq
from aromni_jax.codecs.tensor_files import Tensors
from aromni_jax.codecs.wavtokenizer import WavTokenizer, WavTokenizerConfig
from aromni_jax.codecs.wavtokenizer_weights import import_params, table
from aromni_jax.errors import UserError

TOLERANCE = 1e-3  # of vectors and waves, beside their root mean square
MARGIN = 1e-3  # of squared distances: below it the choice of a code is left to rounding
PACKAGES = ("aromni_jax", "jax", "jaxlib", "flax", "numpy", "torch", "transformers")
BATCH = (1.3, 14.6, 3.1, 7.9, 2.2, 5.4, 9.7, 4.0, 1.8, 11.5, 2.7, 6.6)  # seconds: as uneven as read sentences are


class Side(Protocol):
    """One of the programs that are compared."""

    name: str

    def vectors(self, wave_n: np.ndarray) -> np.ndarray:
        """float32 samples -> float32 [t, e], not yet quantised."""

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 samples of each -> its codes."""

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of each -> its samples."""


class Ours:
    """`SpeechCodec`, as anyone calls it: numpy in and out."""

    name = "aromni_jax"

    def __init__(self, codec: SpeechCodec) -> None:
        self.codec = codec
        build = codec.network.build  # type: ignore[attr-defined]
        self._vectors = jax.jit(
            lambda params, wave_bn, samples_b: vq.with_params(build, params["net"]).encoder(wave_bn, samples_b)
        )

    def vectors(self, wave_n: np.ndarray) -> np.ndarray:
        padded = np.pad(wave_n, (0, -len(wave_n) % self.codec.hop))[None]
        return np.asarray(self._vectors(self.codec.params, padded, np.asarray([len(wave_n)])))[0]

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        lengths = [len(wave_n) for wave_n in waves]
        wave_bn = np.zeros((len(waves), max(lengths)), np.float32)
        for row, wave_n in zip(wave_bn, waves, strict=True):
            row[: len(wave_n)] = wave_n
        return list(self.codec.encode(wave_bn, lengths))

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(self.codec.decode(list(codes)))


def noise(seconds: float, config: WavTokenizerConfig) -> np.ndarray:
    """float32 samples, the same for the same length."""
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * config.sample_rate)).astype(np.float32)


def random_weights(config: WavTokenizerConfig) -> dict[str, np.ndarray]:
    """By their published names. Every layer gives about the size that it takes, so that no rounding is hidden."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in ((name, shape) for row in table(config) for name, shape in row.sources.items()):
        value = rng.standard_normal(shape, np.float32)
        if name.endswith("weight_g"):
            value = 1 + 0.1 * value
        elif len(shape) > 1 and not name.endswith(("embed", "scale.weight", "shift.weight")):
            value /= np.sqrt(np.prod(shape[1:]))
        elif not name.endswith("embed"):
            value = 0.1 * value + name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "scale.weight"))
        weights[name] = value.astype(np.float32)
    weights["head.istft.window"] = np.hanning(config.window + 1)[:-1].astype(np.float32)
    return weights


def random_sides(config: WavTokenizerConfig) -> tuple[Ours, Side, Side]:
    """Ours, the peer, and the peer with padded batches, with the same weights.

    The codebook is drawn around vectors, so that many codes are used.
    """
    try:
        from wavtokenizer_torch import CODEBOOK, PaddedTorchWavTokenizer, TorchWavTokenizer
    except ImportError:
        raise UserError("the peer needs PyTorch and transformers: pip install torch transformers") from None
    weights = random_weights(config)

    def ours() -> Ours:
        shapes = {name: value.shape for name, value in weights.items()}
        params = import_params(Tensors(pathlib.Path("random weights"), shapes, weights.__getitem__), config)
        return Ours(SpeechCodec(WavTokenizer(config), jax.tree.map(jnp.asarray, params), "random"))

    rng, vectors_te = np.random.default_rng(1), ours().vectors(noise(10.0, config))
    chosen_ke = vectors_te[rng.integers(len(vectors_te), size=config.codes)]
    drawn_ke = chosen_ke + 0.3 * rng.standard_normal(chosen_ke.shape) * vectors_te.std(axis=0)
    weights[CODEBOOK] = drawn_ke.astype(np.float32)
    peers = [kind(config, weights, threads()) for kind in (TorchWavTokenizer, PaddedTorchWavTokenizer)]
    return ours(), peers[0], peers[1]


def check_agreement(ours: Ours, peer: Side, waves: Sequence[np.ndarray]) -> dict[str, Any]:
    """Largest differences of vectors and waves, and the codes that are equal; UserError if the sides differ."""
    codebook_ke = ours.codec.codebook.astype(np.float64)
    codes, other_codes = ours.encode(waves), peer.encode(waves)
    differences, unequal = [], 0
    for wave_n, row, other in zip(waves, codes, other_codes, strict=True):
        vectors_te = ours.vectors(wave_n)
        differences.append(_difference(vectors_te, peer.vectors(wave_n)))
        distance_tk = (codebook_ke**2).sum(axis=1) - 2 * vectors_te @ codebook_ke.T
        best_t2 = np.partition(distance_tk, 1, axis=1)[:, :2]
        unequal += int((row != other)[best_t2[:, 1] - best_t2[:, 0] > MARGIN].sum())
    wave_difference = float(np.max(list(map(_difference, ours.decode(codes), peer.decode(codes)))))
    vector_difference = float(np.max(differences))
    if not (vector_difference <= TOLERANCE and wave_difference <= TOLERANCE and unequal == 0):
        raise UserError(
            f"the two do not compute the same: vectors differ by {vector_difference:.1e}, waves by "
            f"{wave_difference:.1e}, {unequal} clear codes differ; nothing was timed"
        )
    return {
        "vector_difference": vector_difference,
        "wave_difference": wave_difference,
        "codes": sum(map(len, codes)),
        "equal_codes": int(sum((row == other).sum() for row, other in zip(codes, other_codes, strict=True))),
        "codes_used": len(np.unique(np.concatenate(codes))),
    }


def _difference(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The largest one, as a share of the root mean square."""
    return float(np.abs(mine - theirs).max() / np.sqrt(np.mean(mine**2)))


def measure(
    ours: Side, cases: Sequence[tuple[str, list[np.ndarray], Side]], rate: int, repeats: int, say: Say
) -> list[dict[str, Any]]:
    """Rows of (case, direction), with seconds of speech per second of each side; ratios repeat by repeat."""
    rows = []
    for case, waves, peer in cases:
        sides = (ours, peer)
        codes, seconds = sides[0].encode(waves), sum(map(len, waves)) / rate
        for what in ("encode", "decode"):
            speeds: dict[str, list[float]] = {side.name: [] for side in sides}
            data = waves if what == "encode" else codes
            for side in sides:
                getattr(side, what)(data)  # not counted: compiling, caches
            for repeat in range(repeats):
                for side in sides if repeat % 2 == 0 else reversed(sides):
                    started = time.perf_counter()
                    getattr(side, what)(data)
                    speeds[side.name].append(seconds / (time.perf_counter() - started))
            mine, theirs = (speeds[side.name] for side in sides)
            ratio = [a / b for a, b in zip(mine, theirs, strict=True)]
            speeds_and_ratio = {"ours": spread(mine), "peer": spread(theirs), "ratio": spread(ratio)}
            rows.append({"case": case, "what": what, "peer_name": peer.name, **speeds_and_ratio})
            say(f"{what} {case}: {rows[-1]['ours']['median']:.1f}, {peer.name} {rows[-1]['peer']['median']:.1f}")
    return rows


def run(
    ours: Ours, peer: Side, padded: Side, singles: Sequence[float], batch: Sequence[float], repeats: int, say: Say
) -> dict[str, Any]:
    """Everything that the JSON file holds; `singles` and `batch` in seconds of speech."""
    config = ours.codec.config
    check = check_agreement(ours, peer, [noise(seconds, config) for seconds in (min(batch), min(singles))])
    mixed = f"{len(batch)} of {min(batch):g} to {max(batch):g} s"
    waves = [noise(seconds, config) for seconds in batch]
    pairs = list(zip(np.concatenate(peer.encode(waves)), np.concatenate(padded.encode(waves)), strict=True))
    check["codes_changed_by_padding"] = float(np.mean([alone != filled for alone, filled in pairs]))
    say(f"same results: {check}")
    cases = [(f"one of {seconds:g} s", [noise(seconds, config)], peer) for seconds in singles]
    cases += [(mixed, waves, peer), (mixed, waves, padded)]
    cpu = CpuUse()
    rows = measure(ours, cases, config.sample_rate, repeats, say)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware() | {"cpu_share_of_others": cpu.share_of_others()},
        "versions": versions(PACKAGES),
        "run": {"repeats": repeats, "config": dataclasses.asdict(config), "batch_seconds": list(batch)},
        "check": check,
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table, with what has to be known to read it."""

    def cell(value: dict[str, Any], form: str) -> str:
        median, low, high = (form.format(value[key]) for key in ("median", "min", "max"))
        return f"{median} ({low}..{high})"

    lines = ["| what | utterances | aromni_jax | peer | its speed | ratio |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        ours, peer, ratio = cell(row["ours"], "{:.1f}"), cell(row["peer"], "{:.1f}"), cell(row["ratio"], "{:.2f}")
        lines.append(f"| {row['what']} | {row['case']} | {ours} | {row['peer_name']} | {peer} | {ratio} |")
    machine, check, others = result["hardware"], result["check"], result["hardware"]["cpu_share_of_others"]
    lines += [
        "",
        f"Seconds of speech per second: median (lowest..highest) of {result['run']['repeats']} repeats; ratios repeat",
        "by repeat. Published size, random weights, float32.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads each; {result['date']};",
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
        f"Before the timing: {check['equal_codes']} of {check['codes']} codes equal, vectors within",
        f"{check['vector_difference']:.1e}, waves within {check['wave_difference']:.1e}. Padding changes",
        f"{check['codes_changed_by_padding']:.1%} of PyTorch's codes in the batch; ours are those of each row alone.",
    ]
    if others is not None:
        lines.append(f"Meanwhile other programs used {others:.1%} of the CPU.")
        if others > BUSY:
            lines += ["", "**The machine was busy: these figures are not to be quoted.**"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 0, or 1 with one line of reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.json", help="a .md goes beside it")
    parser.add_argument("--singles", type=float, nargs="+", default=[3.0, 10.0], metavar="S", help="seconds (3 and 10)")
    parser.add_argument(
        "--batch", type=float, nargs="+", default=BATCH, metavar="S", help="seconds (12 of 1.3 to 14.6)"
    )
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="turns of each side (5)")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    say = clocked()
    return write(
        "speech_torch",
        args.out,
        "WavTokenizer beside PyTorch",
        lambda: run(*random_sides(WavTokenizerConfig()), args.singles, args.batch, args.repeats, say),
        markdown,
    )


if __name__ == "__main__":
    sys.exit(main())
