"""A world of sentences about five things in RGB, spoken by two voices: everything that numbers are not."""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from aromni_jax.worlds import World

THINGS = ("apple", "bell", "cat", "dog", "egg")
SAID = {"train": ("a ", "look at the ", "here is a "), "test": ("where is the ",)}
COLOURS = {"train": (0, 1), "test": (2,)}  # the channel that a picture is drawn in
ANSWERS = 1  # the channel that answers are drawn in
PITCH = {"deep": 120, "high": 360}


@dataclasses.dataclass(frozen=True)
class SmallWorld:
    """Item "cat/1" is "look at the cat"; "cat/0", "a cat", only names it.

    The test split says a new sentence of known things.
    """

    media: pathlib.Path
    name: str = "small"
    voices: tuple[str, ...] = ("deep", "high")
    voice: str = "high"
    styles: tuple[str, ...] = ("red", "green")
    style: str = "green"

    def strings(self, split):
        first = 0 if split == "train" else len(SAID["train"])
        return [f"{thing}/{first + at}" for at in range(len(SAID[split])) for thing in THINGS]

    def text(self, string):
        thing, at = string.split("/")
        return [*SAID["train"], *SAID["test"]][int(at)] + thing

    def naming(self, string):
        return string.split("/")[0] + "/0"

    def marks(self, string):
        return (string.split("/")[0],)

    def utterance(self, string, rng, *, split, voice=None):
        assert split == "test" or string in self.strings("train")
        voice = voice or self.voices[rng.integers(2)]
        return tone(PITCH[voice] + rng.integers(5), THINGS.index(string.split("/")[0]), len(self.text(string)))

    def picture(self, string, rng, *, split, style=None):
        channel = self.styles.index(style) if style else rng.choice(COLOURS[split])
        return bar(THINGS.index(string.split("/")[0]), channel, rng.integers(200, 256))


def tone(pitch, thing, letters):
    """Speech: as long as the text and as high as the voice, louder for later things."""
    samples = np.arange(800 * letters)
    return ((thing + 1) / len(THINGS) * np.sin(samples * pitch * 2 * np.pi / 16_000)).astype(np.float32)


def bar(thing, channel, brightness=255):
    """A picture [16, 16, 3]: the place of the bar is the thing, its channel the style."""
    shown = np.zeros((16, 16, 3), np.uint8)
    shown[:, 3 * thing : 3 * thing + 3, channel] = brightness
    return shown


class BarCodec:
    """Pictures as [thing, channel]."""

    num_codes, tokens_per_image, fingerprint = 8, 2, "3" * 16

    def encode(self, images):
        assert images.shape[1:] == (16, 16, 3) and images.dtype == np.uint8
        columns, channels = images.max(axis=(1, 3)).argmax(axis=1), images.max(axis=(1, 2)).argmax(axis=1)
        return np.stack([columns // 3, channels], axis=1).astype(np.int32)

    def to_pil(self, codes):
        return [Image.fromarray(bar(thing, channel)) for thing, channel in codes]


class ToneCodec:
    """Speech as [voice, thing, letters said]."""

    num_codes, tokens_per_second, sample_rate, fingerprint = 64, 1.0, 16_000, "4" * 16

    def encode(self, wave_bn, lengths):
        rows = []
        for wave, length in zip(wave_bn, lengths, strict=True):
            rises = np.count_nonzero((wave[:-1] <= 0) & (wave[1:] > 0)) * 16_000 / length
            rows.append(np.array([rises > 240, round(5 * float(wave.max())) - 1, length // 800], np.int32))
        return rows

    def decode(self, codes):
        return [tone([120, 360][row[0]], row[1], row[2]) if len(row) else np.zeros(0, np.float32) for row in codes]


def small_world(folder: pathlib.Path) -> World:
    """The world, with a list of its media in the folder."""
    (folder / "manifest.json").write_text("{}")
    return SmallWorld(folder)
