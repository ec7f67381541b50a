"""From output token ids back to parts, and from parts to media (SPEC 6.8, 6.9)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from aromni_jax.decoding import Result
from aromni_jax.errors import UserError
from aromni_jax.tasks.parts import Image, Part, Speech, Text
from aromni_jax.vocabulary import JointVocabulary

if TYPE_CHECKING:
    import PIL.Image

    from aromni_jax.codecs import ImageCodec, SpeechCodec


class TextDecoder(Protocol):
    """What reading an answer needs of a text codec."""

    def decode(self, pieces: list[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said, in the order it said it.

    Attributes:
      parts: all parts, transcript included.
      transcript: what stands between the ins and res markers of a chat answer; None without them.
    """

    parts: tuple[Part, ...]
    transcript: str | None = None

    @property
    def text(self) -> str:
        """All text but the transcript, stripped."""
        texts = [part.text for part in self.parts if isinstance(part, Text)]
        return " ".join(text for text in (texts if self.transcript is None else texts[1:]) if text)

    @property
    def speech(self) -> Speech | None:
        """All utterances in one, or None."""
        codes = [part.codes for part in self.parts if isinstance(part, Speech)]
        return Speech(np.concatenate(codes)) if codes else None

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures."""
        return tuple(part for part in self.parts if isinstance(part, Image))


def read_answer(tokens: Sequence[int], vocabulary: JointVocabulary, text_codec: TextDecoder) -> Answer:
    """Cut output ids into parts, by the rules of SPEC 6.9.

    boi .. eoi is an image and must be whole (`UserError`); boa with codes, or a bare run of speech codes, is
    an utterance (boa without codes is dropped); text pieces between them are text. Reading stops at the first
    eos or eom. Other markers are not shown.
    """
    v = vocabulary
    parts: list[Part] = []
    transcript: str | None = None
    text: list[int] = []
    in_transcript = False

    def close_text() -> None:
        nonlocal text, transcript, in_transcript
        content = text_codec.decode([int(piece) for piece in v.text_pieces(text)]).strip() if text else ""
        if in_transcript:
            transcript, in_transcript = content, False
            parts.append(Text(content))
        elif content:
            parts.append(Text(content))
        text = []

    at = 0
    while at < len(tokens):
        token = int(tokens[at])
        if token in (v.eos, v.eom):
            break
        if token in v.text:
            text.append(token)
        elif token == v.ins and transcript is None and not parts:
            close_text()
            in_transcript = True
        elif token in (v.ins, v.res):
            close_text()
        elif token == v.boi:
            close_text()
            span = tokens[at + 1 : at + 1 + v.image_tokens]
            end = at + 1 + v.image_tokens
            if end >= len(tokens) or tokens[end] != v.eoi or not all(int(t) in v.image for t in span):
                raise UserError(f"answer: the image that opens at token {at} is not {v.image_tokens} codes and eoi")
            parts.append(Image(v.image_codes(span)))
            at = end
        elif token in v.speech:
            close_text()
            end = at
            while end < len(tokens) and int(tokens[end]) in v.speech:
                end += 1
            parts.append(Speech(v.speech_codes(tokens[at:end])))
            at = end - 1
        at += 1
    close_text()
    return Answer(tuple(parts), transcript)


@dataclasses.dataclass(frozen=True)
class Dropped:
    """What was left out at the front of a history, so that the turn had room: whole turns, and their tokens."""

    turns: int = 0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came of one prompt: tokens with their states and clocks, the parts they spell; what the prompt left out."""

    prompt: Sequence[int]
    result: Result
    answer: Answer
    dropped: Dropped = Dropped()


@dataclasses.dataclass(frozen=True)
class Media:
    """An answer made playable.

    Attributes:
      text, transcript: as in `Answer`.
      wave: float32 [n] mono at `sample_rate` hertz, or None (and 0).
      images: PIL images.
    """

    text: str
    transcript: str | None
    wave: np.ndarray | None
    sample_rate: int
    images: tuple[PIL.Image.Image, ...]


def to_media(answer: Answer, speech_codec: SpeechCodec | None, image_codec: ImageCodec | None) -> Media:
    """Decode an answer's codes; `UserError` if the codec for something it holds is missing."""
    wave, sample_rate = None, 0
    if answer.speech is not None:
        if speech_codec is None:
            raise UserError("the answer holds speech, but no speech codec is loaded")
        wave = np.asarray(speech_codec.decode(answer.speech.codes[None])[0], np.float32)
        sample_rate = speech_codec.sample_rate
    images: tuple = ()
    if answer.images:
        if image_codec is None:
            raise UserError("the answer holds an image, but no image codec is loaded")
        images = tuple(image_codec.to_pil(np.stack([image.codes for image in answer.images])))
    return Media(answer.text, answer.transcript, wave, sample_rate, images)
