"""Trains the small codecs on the training part of a world.

    python -m aromni_jax.codecs.train image  --world numbers --out codecs/image
    python -m aromni_jax.codecs.train speech --world numbers --out codecs/speech
    python -m aromni_jax.codecs.train text   --world numbers --out codecs/text

Each takes a few minutes on two cores. The same seed on the same machine gives the same weights.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import soxr
from flax import nnx

from aromni_jax.codecs import folder as store
from aromni_jax.codecs import vq
from aromni_jax.codecs.fit import Batch, FitConfig, Hint, Task, fit
from aromni_jax.codecs.image import ImageCodec
from aromni_jax.codecs.measure import image_figures, speech_figures, text_figures
from aromni_jax.codecs.media import write_png
from aromni_jax.codecs.small_image import ImageConfig, ImageNet
from aromni_jax.codecs.small_speech import SpeechConfig, SpeechNet, log_magnitude, log_mel
from aromni_jax.codecs.speech import SpeechCodec
from aromni_jax.codecs.text import TextCodec, corpus, train_text
from aromni_jax.errors import UserError

World = Any  # what aromni_jax.worlds.<name> gives: strings(split), picture(...), utterance(...)
SENTENCES = Path(__file__).with_name("sentences.txt")
READING_WEIGHT = 0.5  # of the picture reader: one decibel for a third of the reading errors
_CROP_TOKENS = 48
_POOL = 600  # composed utterances to cut crops from: about a quarter of an hour


class ImageReader(nnx.Module):
    """Reads the characters of a string from the vectors of its picture, each from its share of the columns."""

    def __init__(self, config: ImageConfig, characters: int, kinds: int, *, rngs: nnx.Rngs):
        self.characters = characters
        rows, columns = config.grid
        self.hidden = nnx.Linear(rows * columns // characters * config.embed, 128, rngs=rngs)
        self.kinds = nnx.Linear(128, kinds, rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        """float32 [b, rows, columns, e] -> logits [b, characters, kinds]."""
        batch, rows, columns, embed = z.shape
        z = z.reshape(batch, rows, self.characters, columns // self.characters, embed).swapaxes(1, 2)
        return self.kinds(jax.nn.gelu(self.hidden(z.reshape(batch, self.characters, -1))))


def train_image(world: World, steps: int, seed: int, codes: int) -> tuple[ImageConfig, vq.Params]:
    """Fits the image codec on composed training pictures; batches are drawn afresh at every step.

    A reader of the training labels sits beside the decoder: a stroke that tells a 4 from a 9 is worth more than the
    few pixels it has.
    """
    strings = world.strings("train")
    sample = world.picture(strings[0], np.random.default_rng(0), split="train")
    config = ImageConfig(height=sample.shape[0], width=sample.shape[1], codes=codes)
    kinds = sorted(set("".join(strings)))

    def loss(net: ImageNet, z: jax.Array, batch: Batch) -> jax.Array:
        logits = net.decode(z)
        target = (batch["image"] + 1) / 2
        square = jnp.mean((jax.nn.sigmoid(logits) - target) ** 2)
        return 10 * square + 0.3 * jnp.mean(optax.sigmoid_binary_cross_entropy(logits, target))

    def encode(net: ImageNet, batch: Batch) -> tuple[jax.Array, jax.Array]:
        z = net.encode(batch["image"])
        return z, jnp.ones(z.shape[:-1])

    def misread(reader: ImageReader, z: jax.Array, batch: Batch) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(reader(z), batch["label"]))

    task = Task(
        build=lambda rngs: ImageNet(config, rngs=rngs),
        codes=codes,
        encoder=frozenset({"patches", "lift", "look", "embed"}),
        encode=encode,
        loss=loss,
        hint=Hint(
            build=lambda rngs: ImageReader(config, len(strings[0]), len(kinds), rngs=rngs),
            loss=misread,
            weight=READING_WEIGHT,
        ),
    )
    batches = _pictures(world, strings, kinds, np.random.default_rng(seed), batch=64)
    params, _ = fit(task, batches, FitConfig(steps=steps, seed=seed))
    return config, params


def _pictures(
    world: World, strings: Sequence[str], kinds: list[str], rng: np.random.Generator, batch: int
) -> Iterator[Batch]:
    while True:
        chosen = [strings[index] for index in rng.integers(len(strings), size=batch)]
        images = np.stack([world.picture(string, rng, split="train") for string in chosen])
        labels = [[kinds.index(character) for character in string] for string in chosen]
        yield {"image": images[..., None].astype(np.float32) / 127.5 - 1, "label": np.array(labels)}


def train_speech(world: World, steps: int, seed: int, codes: int) -> tuple[SpeechConfig, vq.Params]:
    """Fits the speech codec on crops of composed training utterances."""
    rng = np.random.default_rng(seed)
    strings = world.strings("train")
    waves = [world.utterance(strings[rng.integers(len(strings))], rng, split="train") for _ in range(_POOL)]
    waves = [_other_voice(wave, rng) if index % 2 else wave for index, wave in enumerate(waves)]
    config = SpeechConfig(codes=codes)
    logs = [
        np.asarray(log_magnitude(_whole_tokens(wave, config), config))[0, : -(-len(wave) // config.frame)]
        for wave in waves
    ]
    logs = [_other_tempo(values, rng) if index % 4 > 1 else values for index, values in enumerate(logs)]
    mels = np.asarray(log_mel(jnp.asarray(np.concatenate(logs))[None], config))
    config = SpeechConfig(codes=codes, centre=round(float(mels.mean()), 3), scale=round(float(mels.std()), 3))

    def loss(net: SpeechNet, z: jax.Array, batch: Batch) -> jax.Array:
        mask_bt1, target = batch["mask"], batch["log"]
        frame_mask = jnp.repeat(mask_bt1, config.frames_per_token, axis=1)
        found = net.decode(z, mask_bt1)
        bins = jnp.abs(found - target) * frame_mask
        bands = jnp.abs(log_mel(found, config) - log_mel(target, config)) * frame_mask
        return (bins.mean(-1).sum() + 2 * bands.mean(-1).sum()) / frame_mask.sum()

    def encode(net: SpeechNet, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return net.encode(log_mel(batch["log"], config), batch["mask"]), batch["mask"][..., 0]

    task = Task(
        build=lambda rngs: SpeechNet(config, rngs=rngs),
        codes=codes,
        encoder=frozenset({"frames", "look", "embed"}),
        encode=encode,
        loss=loss,
    )
    params, _ = fit(task, _crops(logs, config, seed, batch=32), FitConfig(steps=steps, seed=seed))
    return config, params


def _other_voice(wave_n: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Played slower or faster (pitch and formants move along), and with more bass or more treble."""
    factor = np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
    wave_n = soxr.resample(wave_n, factor * 16_000, 16_000, quality="MQ")
    tilt = rng.uniform(-0.5, 0.5)
    return np.convolve(wave_n, [1.0, tilt])[: len(wave_n)].astype(np.float32)


def _other_tempo(log_fq: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Spectra spoken up to a quarter slower or two fifths faster, at the same pitch."""
    places = np.arange(0, len(log_fq) - 1, rng.uniform(0.8, 1.4))
    before, share = places.astype(int), (places % 1)[:, None]
    return ((1 - share) * log_fq[before] + share * log_fq[before + 1]).astype(np.float32)


def _whole_tokens(wave_n: np.ndarray, config: SpeechConfig) -> np.ndarray:
    """One row, padded so that few lengths are compiled."""
    tokens = vq.bucket(-(-len(wave_n) // config.hop), 16)
    return np.pad(wave_n, (0, tokens * config.hop - len(wave_n)))[None].astype(np.float32)


def _crops(logs: Sequence[np.ndarray], config: SpeechConfig, seed: int, batch: int) -> Iterator[Batch]:
    """Crops that start on any frame; short utterances are masked behind their end."""
    rng = np.random.default_rng(seed)
    frames = _CROP_TOKENS * config.frames_per_token
    bins = config.window // 2 + 1
    while True:
        log_bfq = np.zeros((batch, frames, bins), np.float32)
        mask_bt1 = np.zeros((batch, _CROP_TOKENS, 1), np.float32)
        for row in range(batch):
            source = logs[int(rng.integers(len(logs)))]
            start = rng.integers(max(1, len(source) - frames + 1))
            piece = source[start : start + frames]
            tokens = len(piece) // config.frames_per_token
            log_bfq[row, : tokens * config.frames_per_token] = piece[: tokens * config.frames_per_token]
            mask_bt1[row, :tokens] = 1
        yield {"log": log_bfq, "mask": mask_bt1}


def load_world(name: str) -> World:
    """The world of that name; codecs know worlds only by name, so that any world can bring its own."""
    try:
        module = importlib.import_module(f"aromni_jax.worlds.{name}")
    except ModuleNotFoundError as error:
        raise UserError(f"no world named {name!r} ({error}); the shipped one is numbers") from error
    return module.NumbersWorld.load()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m aromni_jax.codecs.train", description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=["image", "speech", "text"])
    parser.add_argument("--world", default="numbers")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=2000, help="of the optimizer; text has none")
    parser.add_argument("--codes", type=int, help="codebook size, or number of text pieces")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    world = load_world(options.world)
    if options.kind == "text":
        codes = options.codes or 384
        lines = [world.text(string) for string in world.strings("train")]
        sentences = corpus(SENTENCES)
        words = {word for line in lines for word in line.split()} | {line for line in sentences if line.isalpha()}
        weights = train_text(sentences + lines, codes, sorted(words), options.seed)
        config = {"pieces": codes}
    else:
        codes = options.codes or {"image": 128, "speech": 256}[options.kind]
        train = {"image": train_image, "speech": train_speech}[options.kind]
        shape, params = train(world, options.steps, options.seed, codes)
        config, weights = vars(shape), store.pack_params(params)
    steps = "" if options.kind == "text" else f"--steps {options.steps} "
    card = {
        "training": {
            "command": f"python -m aromni_jax.codecs.train {options.kind} --world {options.world} "
            f"{steps}--codes {codes} --seed {options.seed}",
            "data": f"world {options.world}, training part only",
            "seconds": round(time.monotonic() - started),
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
        },
        "licence": "weights: Apache-2.0; made from the media of the world, whose licences are in its own folder",
    }
    store.write(options.out, options.kind, config, weights, card)
    if options.kind == "image":
        figures, sheet = image_figures(ImageCodec.load(options.out), world)
        write_png(options.out / "sheet.png", sheet)
    elif options.kind == "speech":
        figures = speech_figures(SpeechCodec.load(options.out), world)
    else:
        figures = text_figures(TextCodec.load(options.out), world)
    store.write(options.out, options.kind, config, weights, {**card, "figures": figures})
    print(f"{options.kind} codec in {options.out}: {figures}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
