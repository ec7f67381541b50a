"""Composed media as codes: every utterance and picture is made and encoded once, and serves many examples."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import tqdm

from aromni_jax.codecs import ImageCodec, SpeechCodec, TextCodec
from aromni_jax.data.prefetch import Prefetch
from aromni_jax.tasks.parts import Image, Speech
from aromni_jax.vocabulary import JointVocabulary
from aromni_jax.worlds.numbers import NumbersWorld

_CHUNK = 256  # utterances or pictures encoded at once
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Codecs:
    """The three codecs of a world, and the vocabulary that holds their codes."""

    text: TextCodec
    image: ImageCodec
    speech: SpeechCodec

    @classmethod
    def load(cls, path_or_name: str | os.PathLike[str]) -> Codecs:
        """From a folder that holds the three, or the name of a shipped world; UserError as the codecs raise it."""
        return cls(TextCodec.load(path_or_name), ImageCodec.load(path_or_name), SpeechCodec.load(path_or_name))

    @property
    def vocabulary(self) -> JointVocabulary:
        """The compact layout for these sizes."""
        return JointVocabulary.compact(
            text_pieces=self.text.num_pieces,
            image_codes=self.image.num_codes,
            image_tokens=self.image.tokens_per_image,
            speech_codes=self.speech.num_codes,
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Codec -> fingerprint."""
        return {"text": self.text.fingerprint, "image": self.image.fingerprint, "speech": self.speech.fingerprint}


@dataclasses.dataclass(frozen=True)
class EncodedMedia:
    """Codes of one split's media. Number i, of speech or pictures, is of string i modulo the number of strings.

    Attributes:
      strings: what is said and drawn.
      speech: int32 [T] each.
      image_pn: int32 [pictures, tokens_per_image].
    """

    strings: list[str]
    speech: list[np.ndarray]
    image_pn: np.ndarray

    @classmethod
    def compose(
        cls,
        world: NumbersWorld,
        codecs: Codecs,
        *,
        split: str,
        utterances: int,
        pictures: int,
        rng: np.random.Generator,
        progress: bool = False,
    ) -> EncodedMedia:
        """At least one utterance and one picture of every string of the split, up to the numbers asked for."""
        strings = world.strings(split)

        def say(number: int) -> np.ndarray:
            return world.utterance(strings[number % len(strings)], rng, split=split)

        def draw(number: int) -> np.ndarray:
            return world.picture(strings[number % len(strings)], rng, split=split)

        utterances, pictures = max(utterances, len(strings)), max(pictures, len(strings))
        speech: list[np.ndarray] = []
        for waves in _chunks(say, utterances, f"{split} utterances", progress):
            samples = [len(wave) for wave in waves]
            wave_bn = np.zeros((len(waves), max(samples)), np.float32)
            for row, wave in zip(wave_bn, waves, strict=True):
                row[: len(wave)] = wave
            speech += codecs.speech.encode(wave_bn, samples)
        images = [
            codecs.image.encode(np.stack(chunk)) for chunk in _chunks(draw, pictures, f"{split} pictures", progress)
        ]
        return cls(strings, speech, np.concatenate(images))

    def utterance(self, which: int, rng: np.random.Generator) -> Speech:
        """Some utterance of strings[which]."""
        return Speech(self.speech[self._any_of(which, len(self.speech), rng)])

    def picture(self, which: int, rng: np.random.Generator) -> Image:
        """Some picture of strings[which]."""
        return Image(self.image_pn[self._any_of(which, len(self.image_pn), rng)])

    def _any_of(self, which: int, count: int, rng: np.random.Generator) -> int:
        step = len(self.strings)
        return which + step * int(rng.integers((count - which - 1) // step + 1))

    def statistics(self, tokens_per_second: float) -> dict[str, Any]:
        """Figures for the manifest."""
        seconds = sum(map(len, self.speech)) / tokens_per_second
        return {
            "strings": len(self.strings),
            "utterances": len(self.speech),
            "hours_of_speech": round(seconds / 3600, 4),
            "pictures": len(self.image_pn),
        }


def _chunks(make: Callable[[int], _T], count: int, what: str, progress: bool) -> Iterator[list[_T]]:
    """make(0) ... make(count - 1) in lists of _CHUNK, made in a thread while the last list is encoded."""
    starts = range(0, count, _CHUNK)
    lists = ([make(i) for i in range(start, min(start + _CHUNK, count))] for start in starts)
    with progress_bar(count, what, progress) as bar:
        for chunk in Prefetch(lists, 2):
            yield chunk
            bar.update(len(chunk))


def progress_bar(total: int, what: str, shown: bool) -> tqdm.tqdm:
    """Count, rate and time left on stderr; a line every ten seconds where stderr is no terminal."""
    interval = 0.2 if os.isatty(2) else 10.0
    return tqdm.tqdm(total=total, desc=what, unit="", disable=not shown, mininterval=interval, leave=False)
