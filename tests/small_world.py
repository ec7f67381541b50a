"""A world of sentences about five things in RGB, spoken by two voices: everything that numbers are not."""

import dataclasses
import pathlib

import numpy as np

from aromni_jax.worlds import World

THINGS = ("apple", "bell", "cat", "dog", "egg")
SAID = {"train": ("", "look at the ", "here is a "), "test": ("where is the ",)}
COLOURS = {"train": (0, 1), "test": (2,)}  # the channel that a picture is drawn in
PITCH = {"deep": 120, "high": 360}


@dataclasses.dataclass(frozen=True)
class SmallWorld:
    """Item "cat/1" is "look at the cat"; "cat/0" only names it. The test split says a new sentence of known things."""

    media: pathlib.Path
    name: str = "small"
    voices: tuple[str, ...] = ("deep", "high")
    voice: str = "high"

    def strings(self, split):
        first = 0 if split == "train" else len(SAID["train"])
        return [f"{thing}/{first + at}" for at in range(len(SAID[split])) for thing in THINGS]

    def text(self, string):
        thing, at = string.split("/")
        return [*SAID["train"], *SAID["test"]][int(at)] + thing

    def naming(self, string):
        return string.split("/")[0] + "/0"

    def utterance(self, string, rng, *, split, voice=None):
        """A tone as long as the text and as high as the voice, louder for later things."""
        assert split == "test" or string in self.strings("train")
        pitch = PITCH[voice or self.voices[rng.integers(2)]] + rng.integers(5)
        samples = np.arange(800 * len(self.text(string)))
        loudness = (THINGS.index(string.split("/")[0]) + 1) / len(THINGS)
        return (loudness * np.sin(samples * pitch * 2 * np.pi / 16_000)).astype(np.float32)

    def picture(self, string, rng, *, split):
        """A bar [16, 16, 3] whose place is the thing and whose channel is the style."""
        shown = np.zeros((16, 16, 3), np.uint8)
        left = 3 * THINGS.index(string.split("/")[0])
        shown[:, left : left + 3, rng.choice(COLOURS[split])] = rng.integers(200, 256)
        return shown


class BarCodec:
    """Pictures as [thing, channel]."""

    num_codes, tokens_per_image, fingerprint = 8, 2, "3" * 16

    def encode(self, images):
        assert images.shape[1:] == (16, 16, 3) and images.dtype == np.uint8
        columns, channels = images.max(axis=(1, 3)).argmax(axis=1), images.max(axis=(1, 2)).argmax(axis=1)
        return np.stack([columns // 3, channels], axis=1).astype(np.int32)


class ToneCodec:
    """Speech as [voice, thing, letters said]."""

    num_codes, tokens_per_second, fingerprint = 64, 1.0, "4" * 16

    def encode(self, wave_bn, lengths):
        rows = []
        for wave, length in zip(wave_bn, lengths, strict=True):
            rises = np.count_nonzero((wave[:-1] <= 0) & (wave[1:] > 0)) * 16_000 / length
            rows.append(np.array([rises > 240, round(5 * float(wave.max())) - 1, length // 800], np.int32))
        return rows


def small_world(folder: pathlib.Path) -> World:
    """The world, with a list of its media in the folder."""
    (folder / "manifest.json").write_text("{}")
    return SmallWorld(folder)
