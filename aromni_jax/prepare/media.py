"""Composed media as codes: every utterance and picture is made and encoded once, and serves many examples."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tqdm

from aromni_jax.codecs import ImageCodec, SpeechCodec, TextCodec, TokenizerJson
from aromni_jax.data.prefetch import Prefetch
from aromni_jax.errors import UserError
from aromni_jax.tasks.parts import Image, Speech
from aromni_jax.vocabulary import JointVocabulary
from aromni_jax.worlds import World

_CHUNK = 256  # utterances or pictures encoded at once
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Codecs:
    """The three codecs of a world, and the vocabulary that holds their codes."""

    text: TextCodec | TokenizerJson
    image: ImageCodec
    speech: SpeechCodec

    @classmethod
    def load(cls, places: str | os.PathLike[str] | Mapping[str, str]) -> Codecs:
        """From a folder that holds the three, the name of a shipped world, or a place each: "text", "image", "speech".

        The text codec may be a `tokenizer.json` of the official layout. UserError as the codecs raise it.
        """
        if not isinstance(places, Mapping):
            places = dict.fromkeys(("text", "image", "speech"), os.fspath(places))
        missing = {"text", "image", "speech"} - places.keys()
        if missing:
            raise UserError(
                f"codecs: no {' and no '.join(sorted(missing))} codec is named; give text=, image=, speech="
            )
        text = places["text"]
        text_codec = TokenizerJson.load(text) if text.endswith(".json") else TextCodec.load(text)
        return cls(text_codec, ImageCodec.load(places["image"]), SpeechCodec.load(places["speech"]))

    @functools.cached_property
    def vocabulary(self) -> JointVocabulary:
        """The official layout with a `tokenizer.json`, else the compact one for these sizes.

        Raises UserError: codecs of other sizes than the official ones beside a `tokenizer.json`.
        """
        sizes = {
            "image_codes": self.image.num_codes,
            "image_tokens": self.image.tokens_per_image,
            "speech_codes": self.speech.num_codes,
        }
        if not isinstance(self.text, TokenizerJson):
            return JointVocabulary.compact(text_pieces=self.text.num_pieces, **sizes)
        official = JointVocabulary.aromni()
        wanted = {
            "image_codes": len(official.image),
            "image_tokens": official.image_tokens,
            "speech_codes": len(official.speech),
        }
        if sizes != wanted:
            raise UserError(f"codecs: a tokenizer.json goes with the official layout, {wanted}, and these have {sizes}")
        return official

    @property
    def fingerprints(self) -> dict[str, str]:
        """Codec -> fingerprint."""
        return {"text": self.text.fingerprint, "image": self.image.fingerprint, "speech": self.speech.fingerprint}


@dataclasses.dataclass(frozen=True)
class Takes:
    """Codes of some takes of each item. Number i is of item i modulo the number of items."""

    items: Sequence[str]
    codes: Sequence[np.ndarray]

    def any_of(self, item: str, rng: np.random.Generator) -> np.ndarray:
        """Codes of some take of the item, int32."""
        which, step = self._places[item], len(self.items)
        return self.codes[which + step * int(rng.integers((len(self.codes) - which - 1) // step + 1))]

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {item: place for place, item in enumerate(self.items)}


@dataclasses.dataclass(frozen=True)
class EncodedMedia:
    """Codes of one split's media.

    Attributes:
      strings: the items of the split.
      things: what they name (`World.naming`), each once.
      given: utterances of the items, of any voice.
      answered: utterances of items and things by the voice that answers; the same takes where it is the only one.
      shown: pictures of the things, of any style.
      drawn: pictures of the things in the style that answers; the same ones where it is the only one.
    """

    strings: list[str]
    things: list[str]
    given: Takes
    answered: Takes
    shown: Takes
    drawn: Takes

    @classmethod
    def compose(
        cls,
        world: World,
        codecs: Codecs,
        *,
        split: str,
        utterances: int,
        pictures: int,
        rng: np.random.Generator,
        progress: bool = False,
    ) -> EncodedMedia:
        """At least one take of everything, and up to the numbers asked for, of either kind of speech and pictures."""
        strings = world.strings(split)
        things = list(dict.fromkeys(map(world.naming, strings)))
        named = list(dict.fromkeys([*strings, *things]))

        def speech(items: list[str], what: str, **voice: str) -> Takes:
            def say(number: int) -> np.ndarray:
                return world.utterance(items[number % len(items)], rng, split=split, **voice)

            chunks = _chunks(say, max(utterances, len(items)), f"{split} {what}", progress)
            return Takes(items, [codes for waves in chunks for codes in encode_speech(codecs.speech, waves)])

        def images(what: str, **style: str) -> Takes:
            def draw(number: int) -> np.ndarray:
                return world.picture(things[number % len(things)], rng, split=split, **style)

            chunks = _chunks(draw, max(pictures, len(things)), f"{split} {what}", progress)
            return Takes(things, [codes for chunk in chunks for codes in codecs.image.encode(np.stack(chunk))])

        if len(world.voices) > 1:
            given = speech(strings, "utterances")
            answered = speech(named, "answers", voice=world.voice)
        else:
            given = answered = speech(named, "utterances")
        shown = drawn = images("pictures")
        if len(world.styles) > 1:
            drawn = images("drawings", style=world.style)
        return cls(strings, things, given, answered, shown, drawn)

    def heard(self, string: str, rng: np.random.Generator) -> Speech:
        """Some utterance of an item of the split, by any voice."""
        return Speech(self.given.any_of(string, rng))

    def said(self, string: str, rng: np.random.Generator) -> Speech:
        """Some utterance of an item or a thing by the voice that answers."""
        return Speech(self.answered.any_of(string, rng))

    def seen(self, thing: str, rng: np.random.Generator) -> Image:
        """Some picture of a thing, in any style."""
        return Image(self.shown.any_of(thing, rng))

    def answer_picture(self, thing: str, rng: np.random.Generator) -> Image:
        """Some picture of a thing in the style that answers."""
        return Image(self.drawn.any_of(thing, rng))

    def statistics(self, tokens_per_second: float) -> dict[str, Any]:
        """Figures for the manifest."""
        speech = [*self.given.codes, *(self.answered.codes if self.answered is not self.given else ())]
        return {
            "strings": len(self.strings),
            "utterances": len(speech),
            "hours_of_speech": round(sum(map(len, speech)) / tokens_per_second / 3600, 4),
            "pictures": len(self.shown.codes) + (len(self.drawn.codes) if self.drawn is not self.shown else 0),
        }


def encode_speech(codec: SpeechCodec, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """float32 [n_i] waves -> int32 codes of each."""
    samples = [len(wave) for wave in waves]
    wave_bn = np.zeros((len(waves), max(samples)), np.float32)
    for row, wave in zip(wave_bn, waves, strict=True):
        row[: len(wave)] = wave
    return list(codec.encode(wave_bn, samples))


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
