"""What the small codecs are fitted to: pictures and speech of a world's training part, and the losses on them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import soxr
from flax import nnx

from aromni_jax.buckets import bucket
from aromni_jax.codecs import vq
from aromni_jax.codecs.fit import Batch, Critic, FitConfig, Hint, Task, fit
from aromni_jax.codecs.small_image import ImageConfig, ImageNet
from aromni_jax.codecs.small_speech import SpeechConfig, SpeechNet, log_magnitude, log_mel
from aromni_jax.errors import UserError
from aromni_jax.worlds import World

READING_WEIGHT = 0.5  # of the picture reader: one decibel for a third of the reading errors
_CROP_TOKENS = 48
_MEASURED = 600  # utterances that give the mean and the spread of the bands
_Config = TypeVar("_Config")


class ImageReader(nnx.Module):
    """Reads the marks of a picture from its vectors, from left to right, each from its share of the columns."""

    def __init__(self, config: ImageConfig, marks: int, kinds: int, *, rngs: nnx.Rngs):
        self.marks = marks
        rows, columns = config.grid
        self.hidden = nnx.Linear(rows * columns // marks * config.embed, 128, rngs=rngs)
        self.kinds = nnx.Linear(128, kinds, rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        """float32 [b, rows, columns, e] -> logits [b, marks, kinds]."""
        batch, rows, columns, embed = z.shape
        z = z.reshape(batch, rows, self.marks, columns // self.marks, embed).swapaxes(1, 2)
        return self.kinds(jax.nn.gelu(self.hidden(z.reshape(batch, self.marks, -1))))


class PatchCritic(nnx.Module):
    """Scores overlapping parts of a picture or a spectrogram, each a few dozen pixels wide."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        sizes = (channels, 32, 64, 96)
        self.down = nnx.List([nnx.Conv(a, b, (4, 4), strides=2, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.score = nnx.Conv(sizes[-1], 1, (3, 3), rngs=rngs)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """float32 [b, h, w, c] -> scores [b, h / 8, w / 8, 1]."""
        for layer in self.down:
            x_bhwc = jax.nn.leaky_relu(layer(x_bhwc), 0.2)
        return self.score(x_bhwc)


def _shaped(kind: Callable[..., _Config], **fields: Any) -> _Config:
    """The shape of a network; UserError if it has other fields, or cannot be."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"no such network: {error}; change its shape (--set)") from error


def train_image(
    world: World, shape: Mapping[str, Any], *, steps: int, seed: int, batch: int = 64, adversarial: float = 0.0
) -> tuple[ImageConfig, vq.Params]:
    """Fits the image codec on composed training pictures; batches are drawn afresh at every step.

    A reader of the training labels sits beside the decoder: a stroke that tells a 4 from a 9 is worth more than the
    few pixels it has.

    Args:
      shape: fields of `ImageConfig` other than the size of the pictures, which the world gives.
      batch: pictures per step.
      adversarial: weight of a critic of the decoded pictures; 0 = none.

    Raises UserError: a shape that cannot be, no steps, too many codes.
    """
    strings = world.strings("train")
    sample = world.picture(strings[0], np.random.default_rng(0), split="train")
    channels = sample.shape[2] if sample.ndim == 3 else 1
    config = _shaped(ImageConfig, height=sample.shape[0], width=sample.shape[1], channels=channels, **shape)
    kinds = sorted({mark for string in strings for mark in world.marks(string)})
    marks = len(world.marks(strings[0]))

    def encode(net: ImageNet, batch: Batch) -> tuple[jax.Array, jax.Array]:
        z = net.encode(batch["image"])
        return z, jnp.ones(z.shape[:-1])

    def loss(made: jax.Array, target: jax.Array, _: Batch) -> jax.Array:
        inside = made.clip(1e-6, 1 - 1e-6)
        cross = -jnp.mean(target * jnp.log(inside) + (1 - target) * jnp.log1p(-inside))
        return 10 * jnp.mean((made - target) ** 2) + 0.3 * cross

    def misread(reader: ImageReader, z: jax.Array, batch: Batch) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(reader(z), batch["label"]))

    critic = Critic(
        build=lambda rngs: PatchCritic(channels, rngs=rngs),
        view=lambda picture, _: 2 * picture - 1,
        weight=adversarial,
    )
    task = Task(
        build=lambda rngs: ImageNet(config, rngs=rngs),
        codes=config.codes,
        encoder=frozenset({"patches", "lift", "look", "embed"}),
        encode=encode,
        decode=lambda net, z, _: jax.nn.sigmoid(net.decode(z)),
        real=lambda batch: (batch["image"] + 1) / 2,
        loss=loss,
        hint=Hint(
            build=lambda rngs: ImageReader(config, marks, len(kinds), rngs=rngs), loss=misread, weight=READING_WEIGHT
        ),
        critic=critic if adversarial else None,
    )
    batches = _pictures(world, strings, kinds, np.random.default_rng(seed), batch=batch)
    params, _ = fit(task, batches, FitConfig(steps=steps, seed=seed))
    return config, params


def _pictures(
    world: World, strings: Sequence[str], kinds: list[str], rng: np.random.Generator, batch: int
) -> Iterator[Batch]:
    while True:
        chosen = [strings[index] for index in rng.integers(len(strings), size=batch)]
        images = np.stack([world.picture(string, rng, split="train") for string in chosen])
        labels = [[kinds.index(mark) for mark in world.marks(string)] for string in chosen]
        image_bhwc = images.reshape(*images.shape[:3], -1).astype(np.float32) / 127.5 - 1
        yield {"image": image_bhwc, "label": np.array(labels)}


def train_speech(
    world: World,
    shape: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
    batch: int = 32,
    pool: int = 600,
    vary: bool = True,
    adversarial: float = 0.0,
) -> tuple[SpeechConfig, vq.Params]:
    """Fits the speech codec on crops of composed training utterances.

    Args:
      shape: fields of `SpeechConfig` other than `centre` and `scale`, which are measured.
      batch: crops per step. pool: utterances to cut crops from; they are composed once.
      vary: whether half of them are heard at other pitches, and half at other tempos: for a world of few voices.
      adversarial: weight of a critic of the decoded spectra; 0 = none.

    Raises UserError: as `train_image`.
    """
    config = _shaped(SpeechConfig, **shape)
    rng = np.random.default_rng(seed)
    strings = world.strings("train")
    waves = [world.utterance(strings[rng.integers(len(strings))], rng, split="train") for _ in range(pool)]
    if vary:
        waves = [_other_voice(wave, rng) if index % 2 else wave for index, wave in enumerate(waves)]
    logs = [
        np.asarray(log_magnitude(_whole_tokens(wave, config), config))[0, : -(-len(wave) // config.frame)]
        for wave in waves
    ]
    if vary:
        logs = [_other_tempo(values, rng) if index % 4 > 1 else values for index, values in enumerate(logs)]
    mels = np.asarray(log_mel(jnp.asarray(np.concatenate(logs[:_MEASURED]))[None], config))
    config = dataclasses.replace(config, centre=round(float(mels.mean()), 3), scale=round(float(mels.std()), 3))

    def frame_mask(batch: Batch) -> jax.Array:
        return jnp.repeat(batch["mask"], config.frames_per_token, axis=1)

    def loss(found: jax.Array, target: jax.Array, batch: Batch) -> jax.Array:
        mask_bf1 = frame_mask(batch)
        bins = jnp.abs(found - target) * mask_bf1
        bands = jnp.abs(log_mel(found, config) - log_mel(target, config)) * mask_bf1
        return (bins.mean(-1).sum() + 2 * bands.mean(-1).sum()) / mask_bf1.sum()

    def encode(net: SpeechNet, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return net.encode(log_mel(batch["log"], config), batch["mask"]), batch["mask"][..., 0]

    critic = Critic(
        build=lambda rngs: PatchCritic(1, rngs=rngs),
        view=lambda log_bfq, batch: ((log_bfq - config.centre) / config.scale * frame_mask(batch))[..., None],
        weight=adversarial,
    )
    task = Task(
        build=lambda rngs: SpeechNet(config, rngs=rngs),
        codes=config.codes,
        encoder=frozenset({"frames", "look", "embed"}),
        encode=encode,
        decode=lambda net, z, batch: net.decode(z, batch["mask"]),
        real=lambda batch: batch["log"],
        loss=loss,
        critic=critic if adversarial else None,
    )
    params, _ = fit(task, _crops(logs, config, seed, batch), FitConfig(steps=steps, seed=seed))
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
    tokens = bucket(-(-len(wave_n) // config.hop), 16)
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
