"""Speed of the image codec's encoder on this CPU: aromni_jax beside transformers' Chameleon VQ encoder, in one run.

Both have the same random weights, at the published size, and take the same pictures. Before anything is timed they
must give the same codes; then they take turns. Our bfloat16 is not timed here (CPUs are slow at it), but the share of
codes that it leaves as they are is reported.

    python benchmarks/image_codec.py --out benchmarks/results/image_codec.json
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

from aromni_jax.codecs import ImageCodec, folder, vq
from aromni_jax.codecs.vqgan import VQGANConfig
from aromni_jax.codecs.vqgan_weights import export_params, table
from aromni_jax.errors import UserError

LATENT_TOLERANCE = 1e-3
MARGIN = 1e-3  # of squared distances: below it the choice of a code is left to rounding
PACKAGES = ("aromni_jax", "jax", "jaxlib", "flax", "numpy", "torch", "transformers")


class Side(Protocol):
    """One of the programs that are compared."""

    name: str

    def codes(self, image_bhwc: np.ndarray) -> np.ndarray:
        """float32 pictures in [-1, 1] -> int [b, tokens]."""


class Peer:
    """transformers' `ChameleonVQVAE` in eager PyTorch, float32."""

    name = "transformers"

    def __init__(self, codec: ImageCodec) -> None:
        try:
            import torch
            from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
        except ImportError:
            raise UserError("the peer needs PyTorch and transformers: pip install torch transformers") from None
        self._torch = torch
        torch.set_num_threads(threads())
        config: Any = codec.config
        self._model = ChameleonVQVAE(
            ChameleonVQVAEConfig(
                embed_dim=config.embed_dim,
                num_embeddings=config.n_embed,
                latent_channels=config.z_channels,
                resolution=config.resolution,
                base_channels=config.ch,
                channel_multiplier=list(config.ch_mult),
                num_res_blocks=config.num_res_blocks,
            )
        ).eval()
        weights = {name: torch.from_numpy(value.copy()) for name, value in export_params(codec.params, config).items()}
        self._model.load_state_dict({name: weights[name] for name in self._model.state_dict()})

    def latents(self, image_bhwc: np.ndarray) -> np.ndarray:
        """[b, rows, columns, embed_dim], not yet quantised."""
        with self._torch.inference_mode():
            latent = self._model.quant_conv(self._model.encoder(self._pixels(image_bhwc)))
        return latent.permute(0, 2, 3, 1).numpy()

    def codes(self, image_bhwc: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            codes = self._model.encode(self._pixels(image_bhwc), return_dict=True).image_tokens
        return codes.reshape(len(image_bhwc), -1).numpy()

    def _pixels(self, image_bhwc: np.ndarray) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(image_bhwc.transpose(0, 3, 1, 2)))


class Ours:
    """`ImageCodec.encode`, as anyone calls it."""

    name = "aromni_jax"

    def __init__(self, codec: ImageCodec) -> None:
        self.codec = codec
        self._latents = jax.jit(lambda params, image: vq.with_params(codec.config.build, params["net"]).encode(image))

    def latents(self, image_bhwc: np.ndarray) -> np.ndarray:
        """[b, rows, columns, embed_dim], not yet quantised."""
        return np.asarray(self._latents(self.codec.params, image_bhwc))

    def codes(self, image_bhwc: np.ndarray) -> np.ndarray:
        return self.codec.encode(image_bhwc)


def pictures(count: int, size: int) -> np.ndarray:
    """float32 [count, size, size, 3] in [-1, 1]: blocks of colour, shades and some noise."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-1, 1, (count, size // 32, size // 32, 3))
    shade = np.linspace(-0.5, 0.5, size)[None, :, None, None]
    smooth = np.kron(coarse, np.ones((1, 32, 32, 1))) * 0.7 + shade
    return np.clip(smooth + rng.normal(0, 0.1, smooth.shape), -1, 1).astype(np.float32)


def random_codec(config: VQGANConfig, image_bhwc: np.ndarray) -> ImageCodec:
    """Random weights; the codebook is drawn around what the encoder makes of pictures, so that many codes are used."""
    rng = np.random.default_rng(0)
    flat = {}
    for row in table(config):
        value = rng.standard_normal(row.shape, np.float32)
        if len(row.shape) == 4:
            value /= np.sqrt(np.prod(row.shape[1:]))
        else:
            value = 0.1 * value + row.path.endswith("scale")
        flat[row.path] = jnp.asarray(row.to_ours(value))
    codec = ImageCodec(config, folder.nest(flat), "random")
    latent_ne = Ours(codec).latents(image_bhwc).reshape(-1, config.embed_dim)
    chosen_ke = latent_ne[rng.integers(len(latent_ne), size=config.n_embed)]
    codebook_ke = chosen_ke + 0.5 * rng.standard_normal(chosen_ke.shape) * latent_ne.std(axis=0)
    params = {**codec.params, "codebook": jnp.asarray(codebook_ke, jnp.float32)}
    return dataclasses.replace(codec, params=params)


def check_agreement(ours: Ours, peer: Peer, image_bhwc: np.ndarray) -> dict[str, Any]:
    """Largest difference of the latents, and of the codes where the choice is clear; UserError if they differ."""
    latent, other = ours.latents(image_bhwc), peer.latents(image_bhwc)
    difference = float(np.abs(latent - other).max())
    codebook_ke = ours.codec.codebook.astype(np.float64)
    latent_ne = latent.reshape(-1, latent.shape[-1]).astype(np.float64)
    distance_nk = (codebook_ke**2).sum(axis=-1) - 2 * latent_ne @ codebook_ke.T
    best_n2 = np.partition(distance_nk, 1, axis=-1)[:, :2]
    clear_n = best_n2[:, 1] - best_n2[:, 0] > MARGIN
    codes_n, other_n = ours.codes(image_bhwc).ravel(), peer.codes(image_bhwc).ravel()
    unequal = int((codes_n != other_n)[clear_n].sum())
    if not (difference <= LATENT_TOLERANCE and unequal == 0):
        raise UserError(
            f"the two do not compute the same: latents differ by {difference:.1e}, {unequal} clear codes differ; "
            "nothing was timed"
        )
    return {
        "latent_difference": difference,
        "codes": len(codes_n),
        "clear_codes": int(clear_n.sum()),
        "equal_codes": int((codes_n == other_n).sum()),
        "codes_used": len(np.unique(codes_n)),
    }


def measure(
    sides: Sequence[Side], image_bhwc: np.ndarray, batches: Sequence[int], repeats: int, say: Say
) -> list[dict[str, Any]]:
    """One row per batch size and side, ours first; ratios are taken repeat by repeat, in which both take turns."""
    rows = []
    for batch in batches:
        rates: dict[str, list[float]] = {side.name: [] for side in sides}
        work: dict[str, list[float]] = {side.name: [] for side in sides}
        for side in sides:
            side.codes(image_bhwc[:batch])  # not counted: compiling, caches
        for repeat in range(repeats):
            for side in sides if repeat % 2 == 0 else reversed(sides):
                started, used = time.perf_counter(), time.process_time()
                side.codes(image_bhwc[:batch])
                rates[side.name].append(batch / (time.perf_counter() - started))
                work[side.name].append((time.process_time() - used) / batch)
        first, last = (rates[side.name] for side in sides)
        ratio = spread([a / b for a, b in zip(first, last, strict=True)])
        say(
            f"batch {batch}: " + ", ".join(f"{name} {np.median(values):.3f} images/s" for name, values in rates.items())
        )
        for number, side in enumerate(sides):
            rows.append(
                {
                    "what": side.name,
                    "batch": batch,
                    "images_per_second": spread(rates[side.name]),
                    "cpu_seconds_per_image": spread(work[side.name]),
                    "ratio": ratio if number == 0 else None,
                }
            )
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The table, with what has to be known to read it."""

    def cell(value: dict[str, Any] | None, form: str) -> str:
        if value is None:
            return ""
        median, low, high = (form.format(value[key]) for key in ("median", "min", "max"))
        return f"{median} ({low}..{high})"

    lines = ["| what | batch | images/s | ours / transformers | CPU seconds per image |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        rate, ratio = cell(row["images_per_second"], "{:.3f}"), cell(row["ratio"], "{:.2f}")
        work = cell(row["cpu_seconds_per_image"], "{:.2f}")
        lines.append(f"| {row['what']} | {row['batch']} | {rate} | {ratio} | {work} |")
    machine, run, check, half = (result[key] for key in ("hardware", "run", "check", "bfloat16"))
    others = machine["cpu_share_of_others"]
    lines += [
        "",
        f"Median (lowest..highest) of {run['repeats']} repeats; ratios repeat by repeat. Encoder and codebook of the",
        f"published size, random weights, {run['size']}x{run['size']} pixels, float32.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads each; {result['date']};",
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
        f"Before the timing: {check['equal_codes']} of {check['codes']} codes equal, latents within",
        f"{check['latent_difference']:.1e}. CPU seconds are those of all threads, waiting for each other included.",
        f"In bfloat16 {half['equal_codes']} of {half['codes']} codes stay.",
    ]
    if others is not None:
        lines.append(f"Meanwhile other programs used {others:.1%} of the CPU.")
        if others > BUSY:
            lines += ["", "**The machine was busy: these figures are not to be quoted.**"]
    return "\n".join(lines) + "\n"


def run(config: VQGANConfig, batches: Sequence[int], repeats: int, say: Say) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    image_bhwc = pictures(max(batches), config.resolution)
    say("making weights")
    ours = Ours(random_codec(config, image_bhwc[:1]))
    peer = Peer(ours.codec)
    check = check_agreement(ours, peer, image_bhwc[:1])
    say(f"same codes: {check}")
    cpu = CpuUse()
    rows = measure((ours, peer), image_bhwc, batches, repeats, say)
    use = cpu.share_of_others()
    half = dataclasses.replace(ours.codec, dtype="bfloat16").encode(image_bhwc[:1])
    say("bfloat16 done")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware() | {"cpu_share_of_others": use},
        "versions": versions(PACKAGES),
        "run": {"repeats": repeats, "size": config.resolution, "config": dataclasses.asdict(config)},
        "check": check,
        "bfloat16": {"codes": half.size, "equal_codes": int((half == ours.codes(image_bhwc[:1])).sum())},
        "rows": rows,
    }


def main() -> int:
    """Exit code 0, or 1 with one line of reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.json", help="a .md goes beside it")
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 4], metavar="N", help="pictures (1 and 4)")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="turns of each side (5)")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    say = clocked()
    return write(
        "image_codec", args.out, "Image codec", lambda: run(VQGANConfig(), args.batches, args.repeats, say), markdown
    )


if __name__ == "__main__":
    sys.exit(main())
