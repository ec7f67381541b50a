"""The things world: pictures in several styles, sentences in several voices.

The "test" split speaks sentences that "train" does not have, in the same voices, and draws every thing in a style of
which training has not seen a single picture. A sentence is held out as a whole: training knows its thing and, of other
things, its pattern. The names alone, which the test only answers and never hears, sound in both splits alike: the voice
that answers speaks one text in one way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soxr
from PIL import Image, ImageEnhance

from aromni_jax.errors import UserError
from aromni_jax.worlds.media import read_json, read_wave
from aromni_jax.worlds.things import catalogue
from aromni_jax.worlds.world import SAMPLE_RATE

VOICES = ("hibari", "joe", "slt", "rms")  # the first one answers
STYLES = ("fluent", "noto", "emojione")  # answers are drawn in the first one
UNSEEN_STYLE = "twemoji"
TILE = 96  # pixels of a drawing as it is stored
TILES_PER_ROW = 10
SIDE = 64  # pixels of a picture
MEDIA = Path(__file__).parent / "media"

EDGE_SECONDS = (0.04, 0.1)
# Training only: speed by resampling (pitch moves with it) and loudness.
SPEED_FACTORS = (0.94, 1.06)
GAIN_DB = (-6.0, 3.0)

_REPAIR = "build the media again or reinstall"


@dataclass(frozen=True, eq=False)
class ThingsWorld:
    """Drawings by style and recordings by part and item, read once. Make one with `ThingsWorld.load()`.

    drawings[style][thing] is uint8 [96, 96, 4] (RGBA); recordings[part][string][voice] is int16 [n] at 16 kHz.
    """

    name: ClassVar[str] = "things"
    voices: ClassVar[Sequence[str]] = VOICES
    voice: ClassVar[str] = VOICES[0]
    styles: ClassVar[Sequence[str]] = STYLES
    style: ClassVar[str] = STYLES[0]

    media: Path
    drawings: Mapping[str, Mapping[str, np.ndarray]]
    recordings: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]

    @staticmethod
    def load(media: Path | str = MEDIA) -> ThingsWorld:
        """Reads the media folder (some seconds, 150 MB; kept for the process).

        Raises UserError naming the file that is missing or broken.
        """
        return _load(Path(media))

    def strings(self, split: str) -> list[str]:
        """The items of "train" (every thing's name and eight sentences of it) or "test" (two other sentences)."""
        parts = catalogue.split()
        return list(parts[_known(split, parts, "split")])

    def text(self, string: str) -> str:
        """ "apple/3" -> "where is the apple"."""
        thing, number = catalogue.thing_of(string), string.rpartition("/")[2]
        if thing not in catalogue.THINGS or not number.isdecimal() or int(number) >= len(catalogue.SENTENCES):
            raise UserError(f"{string!r}: items of this world are THING/SENTENCE, as in 'apple/3'")
        return catalogue.text_of(string)

    def naming(self, string: str) -> str:
        """ "apple/3" -> "apple/0", whose text is "an apple"."""
        return catalogue.string_of(catalogue.thing_of(string), 0)

    def marks(self, string: str) -> Sequence[str]:
        """ "apple/3" -> "apple"."""
        return (catalogue.thing_of(string),)

    def utterance(self, string: str, rng: np.random.Generator, *, split: str, voice: str | None = None) -> np.ndarray:
        """The sentence spoken: float32 [n] in [-1, 1], 16 kHz mono, n about 0.6 to 3 s.

        A random voice's recording in `split`, or that voice's; in "train" with a small change of speed and loudness.
        Raises UserError on an unknown split, or if nobody has said it there.
        """
        by_string = self.recordings[_known(split, self.recordings, "split")]
        by_voice = by_string.get(string, {})
        voices = [voice] if voice else sorted(by_voice)
        if not voices or voices[0] not in by_voice:
            raise UserError(f"no recording of {string!r} in {split!r}{f' by {voice}' if voice else ''}")
        wave = by_voice[voices[int(rng.integers(len(voices)))]].astype(np.float32) / 32768
        if split == "train":
            wave = soxr.resample(wave, SAMPLE_RATE, SAMPLE_RATE / rng.uniform(*SPEED_FACTORS), quality="MQ")
            wave = wave * np.float32(10 ** (rng.uniform(*GAIN_DB) / 20))
        edges = [np.zeros(int(rng.uniform(*EDGE_SECONDS) * SAMPLE_RATE), np.float32) for _ in range(2)]
        return np.clip(np.concatenate([edges[0], wave, edges[1]]), -1.0, 1.0).astype(np.float32)

    def picture(self, string: str, rng: np.random.Generator, *, split: str, style: str | None = None) -> np.ndarray:
        """The thing that the item speaks of, drawn on white: uint8 [64, 64, 3].

        Without a style: in "train" one of three, moved, turned, scaled, mirrored and recoloured; in "test" the unseen
        one, as it is. With a style: that one, here and there a little larger or mirrored.
        Raises UserError on an unknown split, style or item.
        """
        self.text(string)
        _known(split, ("train", "test"), "split")
        if style is not None:
            how: Variation | None = CALM
        elif split == "train":
            style, how = STYLES[int(rng.integers(len(STYLES)))], WILD
        else:
            style, how = UNSEEN_STYLE, None
        drawing = self.drawings[_known(style, self.drawings, "style")][catalogue.thing_of(string)]
        return drawn(drawing, how.draw(rng) if how else None)


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How much a drawing may differ from how it is stored.

    Attributes:
      scale: range of sizes. shift: most pixels of a picture to any side. degrees: most it is turned.
      colour: range of the factors of each primary colour, of saturation, brightness and contrast.
    """

    scale: tuple[float, float]
    shift: float
    degrees: float
    colour: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> Change:
        """One of the possible changes."""
        angle = np.radians(rng.uniform(-self.degrees, self.degrees))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return Change(
            turn=turn @ np.diag([rng.choice([-1.0, 1.0]), 1.0]),
            scale=rng.uniform(*self.scale),
            shift=rng.uniform(-self.shift, self.shift, size=2),
            tint=rng.uniform(*self.colour, size=3),
            enhance=rng.uniform(*self.colour, size=3),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Change:
    """What a drawing is put through: turn [2, 2], scale, shift [2] in pixels, factors of tint [3] and enhancers [3]."""

    turn: np.ndarray
    scale: float
    shift: np.ndarray
    tint: np.ndarray
    enhance: np.ndarray


WILD = Variation(scale=(0.84, 1.04), shift=3.0, degrees=10.0, colour=(0.85, 1.15))
CALM = Variation(scale=(0.92, 1.0), shift=1.0, degrees=0.0, colour=(0.97, 1.03))
_AS_IT_IS = Change(turn=np.eye(2), scale=0.96, shift=np.zeros(2), tint=np.ones(3), enhance=np.ones(3))


def drawn(drawing_rgba: np.ndarray, change: Change | None) -> np.ndarray:
    """A drawing, uint8 [96, 96, 4], on white: uint8 [64, 64, 3]; None = as it is, with a narrow margin."""
    image = Image.fromarray(drawing_rgba).convert("RGBa")  # colours times opacity: edges mix without a dark rim
    how = change or _AS_IT_IS
    # PIL wants the map from result to source, on (x, y); twice the size first, and then a mean of 2 x 2 pixels.
    matrix = how.turn * (TILE / (2 * SIDE * how.scale))
    offset = TILE / 2 - matrix @ (SIDE + 2 * how.shift)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    size = (2 * SIDE, 2 * SIDE)
    image = image.transform(size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR)
    image = recoloured(image.reduce(2).convert("RGBA"), how)
    picture = Image.new("RGBA", image.size, "white")
    picture.alpha_composite(image)
    return np.asarray(picture.convert("RGB"))


def recoloured(image: Image.Image, how: Change) -> Image.Image:
    """An RGBA image with other tints, saturation, brightness and contrast, its opacity kept."""
    *colours, opacity = image.split()
    bands = [
        band.point([min(255, round(level * tint)) for level in range(256)])
        for band, tint in zip(colours, how.tint, strict=True)
    ]
    result = Image.merge("RGB", bands)
    kinds = (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast)
    for enhance, factor in zip(kinds, how.enhance, strict=True):
        result = enhance(result).enhance(factor)
    result.putalpha(opacity)
    return result


def _known(split: str, known: Any, what: str) -> str:
    if split not in known:
        raise UserError(f"{what} {split!r}: give one of {', '.join(known)}")
    return split


@cache
def _load(media: Path) -> ThingsWorld:
    things = sorted(catalogue.THINGS)
    drawings = {style: _read_atlas(media / f"pictures/{style}.webp", things) for style in (*STYLES, UNSEEN_STYLE)}
    recordings: dict[str, dict[str, dict[str, np.ndarray]]] = {"train": {}, "test": {}}
    index = media / "speech" / "recordings.json"
    for name, places in _places(index).items():
        voice, _, part = name.rpartition("-")
        wave = read_wave(index.with_name(f"{name}.ogg"), "int16", _REPAIR)
        for string, start, length in places:
            if start + length > len(wave):
                raise UserError(f"{index}: {name}: {string} ends behind the end of the file: {_REPAIR}")
            recordings[part].setdefault(string, {})[voice] = wave[start : start + length]
    return ThingsWorld(media, drawings, recordings)


def _places(index: Path) -> dict[str, list[tuple[str, int, int]]]:
    """VOICE-PART -> (string, first sample, samples) of each recording in that file."""
    found = read_json(index, _REPAIR)
    try:
        places = {
            name: [(str(string), int(at), int(size)) for string, at, size in rows] for name, rows in found.items()
        }
        whole = all(at >= 0 and size > 0 for rows in places.values() for _, at, size in rows)
    except (AttributeError, TypeError, ValueError):
        whole = False
    if not whole or not all(name.endswith(("-train", "-test")) for name in places):
        raise UserError(
            f'{index}: want {{"VOICE-train" or "VOICE-test": [[ITEM, first sample, samples], ...]}}: {_REPAIR}'
        )
    return places


def _read_atlas(path: Path, things: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        grid = np.asarray(Image.open(path).convert("RGBA"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a picture: {_REPAIR}") from error
    rows = -(-len(things) // TILES_PER_ROW)
    if grid.shape != (rows * TILE, TILES_PER_ROW * TILE, 4):
        raise UserError(f"{path}: {grid.shape} is no atlas of {len(things)} tiles of {TILE}x{TILE}: {_REPAIR}")
    tiles = grid.reshape(rows, TILE, TILES_PER_ROW, TILE, 4).swapaxes(1, 2).reshape(-1, TILE, TILE, 4)
    tiles.flags.writeable = False
    return dict(zip(things, tiles, strict=False))
