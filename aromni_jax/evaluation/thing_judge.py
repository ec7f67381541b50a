"""The judge of drawn things: a classifier of edges and colours that knows nothing of the model or its codecs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from aromni_jax.errors import UserError
from aromni_jax.evaluation.judges import optional_module
from aromni_jax.worlds.things import ThingsWorld

_SEED = 7
_DRAWINGS = 24  # changed a little each, per thing
_SIDE = 64  # pixels of a picture after the thing in it is brought to one size
_CELL = 8  # pixels per side of the cells that edges and colours are counted in
_ANGLES = 9
_WHITE = 0.96  # brighter is background


class ThingImageJudge:
    """Names the thing in a picture: linear discriminants on histograms of edge directions and on coarse colours.

    Fitted when made (seconds) on the training styles, the things brought to one place and size; nothing is stored.
    It always names one of the world's things, also for a picture that shows none.
    """

    name = "thing-lda"
    install = "scikit-learn"

    def __init__(self, world: ThingsWorld | None = None) -> None:
        discriminant = optional_module("sklearn.discriminant_analysis", self.install)
        self._world = world or ThingsWorld.load()
        rng = np.random.default_rng(_SEED)
        things = [string for string in self._world.strings("train") if self._world.naming(string) == string]
        strings = [string for string in things for _ in range(_DRAWINGS)]
        features = np.stack([_features(self._world.picture(string, rng, split="train")) for string in strings])
        self._model = discriminant.LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1)
        self._model.fit(features, strings)

    def read(self, picture: np.ndarray) -> str:
        """What a picture, uint8 [h, w, 3], shows: "an apple". Raises UserError on another shape or type."""
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise UserError(f"this judge sees uint8 [h, w, 3], not {picture.dtype} {list(picture.shape)}")
        return self._world.text(self._model.predict(_features(picture)[None])[0])


def _features(picture: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] -> float32 [8 * 8 * (9 + 3)]: the square around what is not white, edges and colours in cells."""
    ink = np.argwhere(picture.min(axis=2) < _WHITE * 255)
    if len(ink):
        (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0) + 1
        side = max(bottom - top, right - left)
        square = Image.new("RGB", (side, side), "white")
        part = Image.fromarray(picture[top:bottom, left:right])
        square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
        picture = np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    else:
        picture = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    colour = picture.astype(np.float32) / 255
    down, across = np.gradient(colour.mean(axis=2))
    size, angle = np.hypot(down, across), np.arctan2(down, across) % np.pi / np.pi * _ANGLES
    edges = np.stack([_cells(size * (angle.astype(int) % _ANGLES == k)) for k in range(_ANGLES)], axis=-1)
    edges *= _CELL**2
    edges /= np.linalg.norm(edges, axis=-1, keepdims=True) + 0.3
    colours = np.stack([_cells(colour[..., channel]) for channel in range(3)], axis=-1)
    return np.concatenate([0.5 * edges.ravel(), 1.5 * colours.ravel()]).astype(np.float32)


def _cells(values_hw: np.ndarray) -> np.ndarray:
    """Means over cells: [64, 64] -> [8, 8]."""
    count = _SIDE // _CELL
    return values_hw.reshape(count, _CELL, count, _CELL).mean(axis=(1, 3))
