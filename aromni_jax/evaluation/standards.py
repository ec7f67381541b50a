"""How each world is judged: by whom, on what beside the plain test items, and what a demo of it promises."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from aromni_jax.errors import UserError
from aromni_jax.evaluation.scores import Words, digit_words, plain_words
from aromni_jax.worlds import World


class ImageJudge(Protocol):
    """Something that says what a picture shows."""

    def read(self, picture: np.ndarray) -> str:
        """What a picture of the world, uint8 [h, w] or [h, w, 3], shows: the words of its naming item."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Items per score; those of the held-out split take turns, and fewer than there are lie evenly among them."""

    heard: int = 200
    seen: int = 400
    spoken: int = 100
    drawn: int = 100
    crossed: int = 60
    chats: int = 40


@dataclasses.dataclass(frozen=True)
class Standard:
    """How a world is judged.

    Attributes:
      words: what counts of a transcript, a caption or what an image judge reads.
      speech_judges: names of those who listen (`judges.SPEECH_JUDGES`); the first gives the headline figures.
      image_judge: who looks, "module:class" of this room; made with the world.
      picture_mode: of the pictures it reads, "L" or "RGB".
      bounds: what a demo promises of held-out items: most of asr and tts, least of caption and t2i.
      held_out: what the scores are of, a sentence.
      sizes: of every published figure.
      hearing: further tests of hearing, score -> how `World.utterance` makes their speech.
      per_word: name of the share of words that are read as asked, for pictures that are read word by word.
      chat_text, chat_speech: room for several times a right answer in a dialog (`Options.max_text`, `max_speech`).
      demo_seconds: what a demo on two cores takes at most, if it is promised.
    """

    words: Words
    speech_judges: tuple[str, ...]
    image_judge: str
    picture_mode: str
    bounds: Mapping[str, float]
    held_out: str
    sizes: Sizes = Sizes()
    hearing: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    per_word: str | None = None
    chat_text: int = 16
    chat_speech: int = 128
    demo_seconds: float | None = None

    def make_image_judge(self, world: World) -> ImageJudge:
        """Who looks; UserError with the line to type if a package is missing."""
        module, _, name = self.image_judge.partition(":")
        return getattr(importlib.import_module(f"aromni_jax.evaluation.{module}"), name)(world)


STANDARDS: Mapping[str, Standard] = {
    "numbers": Standard(
        words=digit_words,
        speech_judges=("moonshine", "pocketsphinx"),
        image_judge="judges:DigitImageJudge",
        picture_mode="L",
        bounds={"asr": 0.15, "tts": 0.20, "caption": 0.60, "t2i": 0.80},
        held_out="Every item here was kept out of training, and out of the fitting of the codecs.",
        hearing={
            "asr_held_out_speed": {"split": "fast"},
            "asr_held_out_voice": {"split": "test", "voice": "allison"},
        },
        per_word="per_digit",
        demo_seconds=15 * 60.0,
    ),
    "things": Standard(
        words=plain_words,
        speech_judges=("moonshine",),
        image_judge="thing_judge:ThingImageJudge",
        picture_mode="RGB",
        bounds={"asr": 0.25, "tts": 0.25, "caption": 0.60, "t2i": 0.60},
        held_out="Every sentence here, and every style of drawing, was kept out of training, and out of the fitting of "
        "the codecs; the things are known ones, and so are the words that name them and the patterns of the sentences.",
        sizes=Sizes(heard=240, seen=120, spoken=120, drawn=120),  # a thing has one drawing in the unseen style
        chat_text=48,
    ),
}


def standard_of(world: str) -> Standard:
    """How the world of that name is judged; UserError where it is none that comes with the package."""
    if world not in STANDARDS:
        raise UserError(f"no judges know the world {world!r}: say which one to judge in, {' or '.join(STANDARDS)}")
    return STANDARDS[world]
