"""The numbers world: two-digit strings, written, spoken and drawn, composed from recordings of single digits.

Nothing of the "test" split is used in training: other strings, other recordings, other drawings. The training voice
is a nearly deterministic synthesiser, though: most of its test recordings (88 of 100) have the waveform of a training
recording of the same digit but for faint noise, so that "test" speech shows unseen strings, not unseen sounds. Two
harder tests lie beyond it: faster speech than any in training (split "fast") and another voice ("allison", the
recordings of a real person).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soxr
from PIL import Image

from aromni_jax.errors import UserError
from aromni_jax.worlds.media import read_json, read_wave
from aromni_jax.worlds.world import SAMPLE_RATE

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PICTURE_SHAPE = (28, 56)
TILE = 28
VOICES = ("hibari", "allison")
MEDIA = Path(__file__).parent / "media"

_REPAIR = "build the media again or reinstall"

GAP_SECONDS = (0.03, 0.15)
EDGE_SECONDS = (0.05, 0.12)
# Training only: speed by resampling (pitch moves with it), loudness, and the affine map of each drawing.
SPEED_FACTORS = (0.95, 1.05)
GAIN_DB = (-6.0, 3.0)
ROTATION_DEGREES = 8.0
SHEAR = 0.12
SCALE = (0.9, 1.1)
SHIFT_PIXELS = 1.5


@dataclass(frozen=True, eq=False)
class Clip:
    """One spoken digit: float32 [n] at 16 kHz, and the rate it was spoken at (1 = the voice's own pace)."""

    wave: np.ndarray
    rate: float


@dataclass(frozen=True, eq=False)
class NumbersWorld:
    """Strings, recordings and drawings by split, read once. Make one with `NumbersWorld.load()`; see `worlds.World`.

    clips[voice, part][digit] lists recordings; drawings[part][digit] is uint8 [n, 28, 28], white on black.
    """

    name: ClassVar[str] = "numbers"
    voices: ClassVar[Sequence[str]] = ("hibari",)
    voice: ClassVar[str] = "hibari"
    styles: ClassVar[Sequence[str]] = ("handwriting",)
    style: ClassVar[str] = "handwriting"

    media: Path
    split: Mapping[str, Sequence[str]]
    clips: Mapping[tuple[str, str], Sequence[Sequence[Clip]]]
    drawings: Mapping[str, Sequence[np.ndarray]]

    @staticmethod
    def load(media: Path | str = MEDIA) -> NumbersWorld:
        """Reads the media folder (about half a second; kept for the process).

        Raises UserError naming the file that is missing or broken.
        """
        return _load(Path(media))

    def strings(self, split: str) -> list[str]:
        """The two-digit strings of "train" (80) or "test" (20); "fast" speaks the strings of "test"."""
        return list(self.split[self._part("test" if split == "fast" else split, self.split)])

    def text(self, string: str) -> str:
        """ "23" -> "two three"."""
        return " ".join(DIGITS[digit] for digit in _digits(string))

    def naming(self, string: str) -> str:
        """A number is all that it says."""
        return string

    def marks(self, string: str) -> Sequence[str]:
        """ "23" -> "2", "3"."""
        return tuple(string)

    def utterance(
        self,
        string: str,
        rng: np.random.Generator,
        *,
        split: str,
        voice: str | None = None,
        speed_range: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """The string spoken digit by digit: float32 [n] in [-1, 1], 16 kHz mono, n about 0.8 to 1.6 s.

        A random recording of `split` per digit, with random pauses; in "train" also a small change of speed
        and loudness. `split` is "train", "test" or "fast" (held-out speaking rates, test only). Voice
        "allison" is only for "test"; None is the synthetic one. `speed_range` keeps recordings spoken at a rate
        within it.
        Raises UserError on an unknown split or voice, or if no recording is left.
        """
        voice = voice or self.voice
        if voice not in VOICES:
            raise UserError(f"voice {voice!r}: this world has {', '.join(VOICES)}")
        parts = [part for owner, part in self.clips if owner == voice]
        by_digit = self.clips[voice, self._part(split, parts, f" of voice {voice!r}")]
        pieces = [_silence(rng, EDGE_SECONDS)]
        for position, digit in enumerate(_digits(string)):
            choice = _within(by_digit[digit], speed_range, digit)
            wave = choice[int(rng.integers(len(choice)))].wave
            if split == "train":
                wave = _resampled(wave, rng.uniform(*SPEED_FACTORS))
            if position:
                pieces.append(_silence(rng, GAP_SECONDS))
            pieces.append(wave)
        pieces.append(_silence(rng, EDGE_SECONDS))
        utterance = np.concatenate(pieces)
        if split == "train":
            utterance = utterance * np.float32(10 ** (rng.uniform(*GAIN_DB) / 20))
        return np.clip(utterance, -1.0, 1.0)

    def picture(self, string: str, rng: np.random.Generator, *, split: str, style: str | None = None) -> np.ndarray:
        """The string drawn by hand, digits side by side: uint8 [28, 56], white (255) on black.

        A random drawing of `split` ("train" or "test") per digit; in "train" each is moved, turned, scaled
        and sheared a little. There is one style. Raises UserError on an unknown split.
        """
        del style
        by_digit = self.drawings[self._part(split, self.drawings)]
        tiles = []
        for digit in _digits(string):
            tile = by_digit[digit][rng.integers(len(by_digit[digit]))]
            tiles.append(_warped(tile, rng) if split == "train" else tile)
        return np.concatenate(tiles, axis=1)

    @staticmethod
    def _part(split: str, known: Any, what: str = "") -> str:
        if split not in known:
            raise UserError(f"split {split!r}{what}: give one of {', '.join(known)}")
        return split


def _digits(string: str) -> list[int]:
    if not (string.isascii() and string.isdigit() and len(string) == 2):
        raise UserError(f"{string!r}: strings of this world are two digits, as in '23'")
    return [int(character) for character in string]


def _silence(rng: np.random.Generator, seconds: tuple[float, float]) -> np.ndarray:
    return np.zeros(int(rng.uniform(*seconds) * SAMPLE_RATE), np.float32)


def _within(clips: Sequence[Clip], rates: tuple[float, float] | None, digit: int) -> Sequence[Clip]:
    if rates is None:
        return clips
    kept = [clip for clip in clips if rates[0] <= clip.rate <= rates[1]]
    if not kept:
        raise UserError(f"no recording of {DIGITS[digit]!r} at a rate within {rates}: widen speed_range")
    return kept


def _resampled(wave_n: np.ndarray, factor: float) -> np.ndarray:
    """The clip played `factor` times as fast."""
    return soxr.resample(wave_n, SAMPLE_RATE, SAMPLE_RATE / factor, quality="MQ").astype(np.float32)


def _warped(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A small random affine map of a drawing [28, 28] about its middle, bilinear."""
    angle = np.radians(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, rng.uniform(-SHEAR, SHEAR)], [0.0, 1.0]])
    # PIL wants the map from result to source, on (x, y) with pixel centres at +0.5.
    matrix = turn @ shear / rng.uniform(*SCALE, size=2)
    middle = np.full(2, TILE / 2)
    offset = middle - matrix @ (middle + rng.uniform(-SHIFT_PIXELS, SHIFT_PIXELS, size=2))
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    image = Image.fromarray(tile).transform(
        (TILE, TILE), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR
    )
    return np.asarray(image)


@cache
def _load(media: Path) -> NumbersWorld:
    clips: dict[tuple[str, str], list[list[Clip]]] = {}
    recordings_file = media / "speech" / "hibari" / "recordings.json"
    for name, entry in read_json(recordings_file, _REPAIR).items():
        try:
            digit, part, rate = int(entry["digit"]), str(entry["part"]), float(entry["rate"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{recordings_file}: entry {name!r} needs digit, part and rate") from error
        by_digit = clips.setdefault(("hibari", part), [[] for _ in DIGITS])
        by_digit[digit].append(Clip(read_wave(recordings_file.with_name(name), "float32", _REPAIR), rate))
    allison = [
        [Clip(read_wave(media / f"speech/allison/{digit}.flac", "float32", _REPAIR), 1.0)] for digit in range(10)
    ]
    clips["allison", "test"] = allison
    labels = read_json(media / "drawings" / "labels.json", _REPAIR)
    drawings = {part: _read_atlas(media / f"drawings/{part}.png", labels[part]) for part in labels}
    return NumbersWorld(media, read_json(media / "split.json", _REPAIR), clips, drawings)


def _read_atlas(path: Path, labels: Sequence[int]) -> list[np.ndarray]:
    try:
        grid = np.asarray(Image.open(path).convert("L"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a picture: {_REPAIR}") from error
    rows, columns = grid.shape[0] // TILE, grid.shape[1] // TILE
    if grid.shape != (rows * TILE, columns * TILE) or rows * columns != len(labels):
        raise UserError(f"{path}: {grid.shape} is no atlas of {len(labels)} tiles of {TILE}x{TILE}")
    tiles = grid.reshape(rows, TILE, columns, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)
    tiles.flags.writeable = False
    return [tiles[np.asarray(labels) == digit] for digit in range(10)]
