"""What the codecs that are shipped with the worlds lose: held-out pictures and speech, there and back.

Judges that know nothing of a codec hear and see the originals and the copies: the difference is what the codec costs.

    python benchmarks/small_codecs.py --out benchmarks/results/small_codecs.json

The table goes beside the figures; the judges come with the extra aromni_jax[demo].
"""

from __future__ import annotations

import argparse
import datetime
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from machine import hardware, positive, versions

from aromni_jax import store
from aromni_jax.cli.evaluate import make_judge
from aromni_jax.codecs import ImageCodec, SpeechCodec, vq
from aromni_jax.codecs.measure import log_spectral_distance, psnr, round_trip, ssim
from aromni_jax.errors import UserError
from aromni_jax.evaluation.scores import bootstrap, word_error_rate
from aromni_jax.evaluation.standards import standard_of
from aromni_jax.worlds import WORLDS, World, load_world

SEED = 5
PACKAGES = ("aromni_jax", "jax", "numpy", "onnxruntime")


def pictures(world: World, most: int) -> dict[str, Any]:
    """PSNR and SSIM against the originals, and how often the image judge names each right."""
    codec, standard = ImageCodec.load(world.name), standard_of(world.name)
    rng = np.random.default_rng(SEED)
    items = list(dict.fromkeys(map(world.naming, world.strings("test"))))
    items = [items[number % len(items)] for number in range(most)]
    originals = np.stack([world.picture(item, rng, split="test") for item in items])
    codes = codec.encode(originals)
    copies = np.stack([np.asarray(copy.convert(standard.picture_mode)) for copy in codec.to_pil(codes)])
    judge = standard.make_image_judge(world)
    result = {
        "pictures": len(items),
        "pixels": originals[0].shape[0] * originals[0].shape[1],
        "tokens": codec.tokens_per_image,
        "codes": codec.num_codes,
        "perplexity": vq.perplexity(codes, codec.num_codes),
        "psnr_db": psnr(originals, copies),
        "ssim": float(np.mean([ssim(*pair) for pair in zip(originals, copies, strict=True)])),
    }
    for name, side in (("original", originals), ("copy", copies)):
        right = [
            standard.words(judge.read(picture)) == standard.words(world.text(item))
            for picture, item in zip(side, items, strict=True)
        ]
        result[f"named_right_{name}"] = bootstrap([float(value) for value in right], groups=items).value
    return result


def speech(world: World, most: int, judges: Sequence[str], voice: str | None) -> dict[str, Any]:
    """Log-spectral distance of copies, and word error rates of both sides by each judge, with 95 % intervals."""
    codec, standard = SpeechCodec.load(world.name), standard_of(world.name)
    rng = np.random.default_rng(SEED)
    strings = world.strings("test")
    strings = [strings[number * max(1, len(strings) // most) % len(strings)] for number in range(most)]
    originals = [world.utterance(string, rng, split="test", voice=voice) for string in strings]
    codes, copies = round_trip(codec, originals)
    result: dict[str, Any] = {
        "utterances": len(strings),
        "seconds": sum(map(len, originals)) / codec.sample_rate,
        "tokens_per_second": codec.tokens_per_second,
        "codes": codec.num_codes,
        "perplexity": vq.perplexity(np.concatenate(codes), codec.num_codes),
        "log_spectral_distance_db": float(
            np.mean([log_spectral_distance(*pair) for pair in zip(originals, copies, strict=True)])
        ),
        "judges": {},
    }
    texts = [world.text(string) for string in strings]
    for name in judges:
        judge = make_judge(name, standard)
        rates = {}
        for side, waves in (("original", originals), ("copy", copies)):
            heard = [judge.transcribe(np.asarray(wave, np.float32)) for wave in waves]
            rate = word_error_rate(texts, heard, standard.words)
            rates[side] = {"wer": rate.value, "interval": [rate.low, rate.high]}
        result["judges"][judge.name] = rates
    return result


def table(measured: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Codecs of the shipped worlds: held-out items, there and back",
        "",
        f"{measured['date']}, {measured['hardware']['processor']}. Written by `benchmarks/small_codecs.py`.",
        "",
        "Codes in use: their perplexity. Right: as named by the world's image judge.",
        "",
        "| pictures | tokens | bits per pixel | codes in use | PSNR | SSIM | originals right | copies right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, world in measured["worlds"].items():
        p = world["pictures"]
        bits = p["tokens"] * math.log2(p["codes"]) / p["pixels"]
        lines.append(
            f"| {name}, n={p['pictures']} | {p['tokens']} | {bits:.3f} | {p['perplexity']:.0f} of {p['codes']} | "
            f"{p['psnr_db']:.2f} dB | {p['ssim']:.3f} | {p['named_right_original']:.1%} | {p['named_right_copy']:.1%} |"
        )
    lines += [
        "",
        "| speech | bits per second | codes in use | log-spectral distance | judge | WER, originals | WER, copies |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, world in measured["worlds"].items():
        for voice, s in world["speech"].items():
            for judge, rates in s["judges"].items():
                sides = " | ".join(
                    f"{rates[side]['wer']:.1%} [{rates[side]['interval'][0]:.1%}, {rates[side]['interval'][1]:.1%}]"
                    for side in ("original", "copy")
                )
                lines.append(
                    f"| {name}, {voice}, n={s['utterances']} | {s['tokens_per_second'] * math.log2(s['codes']):.0f} | "
                    f"{s['perplexity']:.0f} of {s['codes']} | {s['log_spectral_distance_db']:.2f} dB | "
                    f"{judge} | {sides} |"
                )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, help="JSON file to write; the table goes beside it")
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=WORLDS)
    parser.add_argument("--judges", nargs="+", help="of speech (default: the world's own)")
    parser.add_argument("--items", type=positive, default=120, help="pictures, and utterances of each kind of voice")
    options = parser.parse_args(arguments)
    worlds: dict[str, Any] = {}
    for name in options.worlds:
        world = load_world(name)
        judges = options.judges or standard_of(name).speech_judges
        voices = {f"voice {world.voice}": world.voice} | ({"all voices": None} if len(world.voices) > 1 else {})
        worlds[name] = {
            "pictures": pictures(world, options.items),
            "speech": {voice: speech(world, options.items, judges, which) for voice, which in voices.items()},
        }
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    measured = {"date": today, "hardware": hardware(), "versions": versions(PACKAGES), "worlds": worlds}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(options.out, measured)
    options.out.with_suffix(".md").write_text(table(measured), encoding="utf-8")
    print(table(measured))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
