"""Trains the small codecs on the training part of a world.

    python -m aromni_jax.codecs.train image  --world numbers --out codecs/image
    python -m aromni_jax.codecs.train speech --world numbers --out codecs/speech
    python -m aromni_jax.codecs.train text   --world numbers --out codecs/text

Each takes some minutes on two cores. The same seed on the same machine gives the same weights. A folder of a codec
says in its `codec.json` how it was trained and how much it loses; beside it lies a contact sheet, or samples, of
held-out originals and what the codec makes of them.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aromni_jax.codecs import folder as store
from aromni_jax.codecs.image import ImageCodec
from aromni_jax.codecs.measure import image_figures, speech_figures, text_figures
from aromni_jax.codecs.media import write_png, write_wav
from aromni_jax.codecs.recipes import train_image, train_speech
from aromni_jax.codecs.speech import SpeechCodec
from aromni_jax.codecs.text import TextCodec, corpus, train_text
from aromni_jax.errors import UserError
from aromni_jax.signals import heard_everywhere
from aromni_jax.worlds import WORLDS, World, load_world

SENTENCES = Path(__file__).with_name("sentences.txt")
CODES = {"image": 128, "speech": 256, "text": 384}
_GIVEN = {  # fields of a network's shape that are not free
    "codes": "say it with --codes",
    **dict.fromkeys(("height", "width", "channels", "sample_rate"), "the world's media give it"),
    **dict.fromkeys(("centre", "scale", "loudness"), "it is measured or fixed"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's text."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    _must_be_writable(options.out)
    started = time.monotonic()
    world = load_world(options.world)
    codes = options.codes or CODES[options.kind]
    config: dict[str, Any]
    if options.kind == "text":
        config, weights = {"pieces": codes}, _train_text(world, codes, options.seed)
    else:
        shape = {"codes": codes, **dict(map(_assignment, options.set))}
        how = {"steps": options.steps, "seed": options.seed, "adversarial": options.adversarial}
        if options.batch:
            how["batch"] = options.batch
        made: tuple[Any, Any]
        if options.kind == "image":
            made = train_image(world, shape, **how)
        else:
            made = train_speech(world, shape, pool=options.pool, vary=not options.as_recorded, **how)
        config, weights = vars(made[0]), store.pack_params(made[1])
    card = {
        "training": {
            "command": " ".join(["python -m aromni_jax.codecs.train", *_without_out(words)]),
            "data": f"world {options.world}, training part only",
            "seconds": round(time.monotonic() - started),
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
        },
        "licence": "weights: Apache-2.0; made from the media of the world, whose licences are in its own folder",
    }
    # Measured as it will be read, before it replaces a codec that may be there.
    with tempfile.TemporaryDirectory() as draft:
        store.write(draft, options.kind, config, weights, card)
        figures = _measured(options.kind, Path(draft), world, options.out)
    store.write(options.out, options.kind, config, weights, {**card, "figures": figures})
    print(f"{options.kind} codec in {options.out}: {figures}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aromni_jax.codecs.train", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("kind", choices=list(CODES))
    parser.add_argument("--world", default="numbers", choices=WORLDS)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--steps", type=_count, default=2000, help="of the optimizer; text has none")
    parser.add_argument("--batch", type=_count, help="pictures (64) or crops of speech (32) per step")
    parser.add_argument("--codes", type=_count, help="codebook size, or number of text pieces")
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=NUMBER", help="shape of the network, such as dim=192 patch=8"
    )
    parser.add_argument(
        "--adversarial", type=_weight, default=0.0, metavar="WEIGHT", help="of a critic of the decoder (default: none)"
    )
    parser.add_argument("--pool", type=_count, default=600, help="speech: utterances to cut crops from")
    parser.add_argument(
        "--as-recorded", action="store_true", help="speech: no other pitches and tempos, the world has voices enough"
    )
    return parser


def _count(word: str) -> int:
    """Above 0; ValueError, which argparse words, if not."""
    if int(word) < 1:
        raise ValueError
    return int(word)


def _seed(word: str) -> int:
    if not 0 <= int(word) < 2**31:
        raise ValueError
    return int(word)


def _weight(word: str) -> float:
    if not 0 <= float(word) < math.inf:
        raise ValueError
    return float(word)


def _assignment(word: str) -> tuple[str, int]:
    field, _, value = word.partition("=")
    if not (value.isascii() and value.isdecimal()):
        raise UserError(f"--set {word}: write it as FIELD=NUMBER, such as dim=192")
    if field in _GIVEN:
        raise UserError(f"--set {word}: {_GIVEN[field]}")
    return field, int(value)


def _without_out(words: Sequence[str]) -> list[str]:
    """The command but for --out DIR or --out=DIR: the folder is no part of what was made."""
    kept = [word for word in words if not word.startswith("--out=")]
    if "--out" in kept:
        at = kept.index("--out")
        del kept[at : at + 2]
    return kept


def _must_be_writable(folder: Path) -> None:
    """UserError now rather than after minutes of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): give another --out") from error


def _train_text(world: World, pieces: int, seed: int) -> bytes:
    lines = [world.text(string) for string in world.strings("train")]
    sentences = corpus(SENTENCES)
    words = {word for line in lines for word in line.split()} | {line for line in sentences if line.isalpha()}
    return train_text(sentences + lines, pieces, sorted(words), seed)


def _measured(kind: str, folder: Path, world: World, out: Path) -> dict[str, Any]:
    """Figures of the codec in `folder` on held-out items; some of these go to `out`, to look at or to listen to."""
    if kind == "text":
        return text_figures(TextCodec.load(folder), world)
    if kind == "image":
        figures, sheet = image_figures(ImageCodec.load(folder), world)
        write_png(out / "sheet.png", sheet)
        return figures
    codec = SpeechCodec.load(folder)
    figures, samples = speech_figures(codec, world)
    write_wav(out / "samples.wav", samples, codec.sample_rate)
    return figures


if __name__ == "__main__":
    try:
        with heard_everywhere():
            main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
