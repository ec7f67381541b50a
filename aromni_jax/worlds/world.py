"""What every world gives, and the worlds by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from aromni_jax.errors import UserError

WORLDS = ("numbers", "things")
SAMPLE_RATE = 16_000  # of all speech, in Hz


class World(Protocol):
    """Items that are written, spoken and drawn. An item is known by its string.

    Attributes:
      name: of the world, and of its folder.
      media: folder of the raw media, with a manifest.json of their sums.
      voices: those that speak in the "train" split.
      voice: the one of them that answers; the others are only listened to.
      styles: those that pictures of the "train" split are drawn in.
      style: the one of them that answers are drawn in; the others are only looked at.
    """

    name: str
    media: Path
    voices: Sequence[str]
    voice: str
    styles: Sequence[str]
    style: str

    def strings(self, split: str) -> list[str]:
        """The items of a split; "train" and "test" share none."""

    def text(self, string: str) -> str:
        """The words of the item, as its utterances say them."""

    def naming(self, string: str) -> str:
        """The item that says what a picture of this item shows, and no more; the item itself where that is all it says.

        It need not be of the same split: a new sentence may speak of a known thing.
        """

    def marks(self, string: str) -> Sequence[str]:
        """What a reader of the item's picture finds from left to right; the same number for every item."""

    def utterance(self, string: str, rng: np.random.Generator, *, split: str, voice: str | None = None) -> np.ndarray:
        """The item spoken: float32 [n] in [-1, 1], 16 kHz mono; voice None = any that has said it."""

    def picture(self, string: str, rng: np.random.Generator, *, split: str, style: str | None = None) -> np.ndarray:
        """The item drawn: uint8 [height, width] (grey) or [height, width, 3] (RGB), of one size in a world.

        Style None = any of the split's, varied so that it is hard to know; a style = that one, as an answer should be.
        """


def load_world(name: str) -> World:
    """The world of that name, its media read once for the process; UserError for another name or broken media."""
    if name not in WORLDS:
        raise UserError(f"no world named {name!r}: use {' or '.join(WORLDS)}")
    return importlib.import_module(f"aromni_jax.worlds.{name}").load()
