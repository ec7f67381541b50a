"""From the tokens of one row, as they come, to events: text in valid UTF-8 cuts, speech in windows, picture rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from aromni_jax.decoding.grammar import State
from aromni_jax.decoding.request import Event, ImageDone, ImageRows, SpeechChunk, StateChange, TextPiece
from aromni_jax.vocabulary import JointVocabulary


class TextDecoder(Protocol):
    """What streaming needs of a text codec."""

    def decode(self, pieces: list[int]) -> str: ...


class SpeechWindows(Protocol):
    """One utterance whose samples come out while its codes come in."""

    def push(self, codes: np.ndarray) -> np.ndarray: ...

    def close(self) -> np.ndarray: ...


class SpeechDecoder(Protocol):
    """What streaming needs of a speech codec; `sample_rate` in hertz."""

    @property
    def sample_rate(self) -> int: ...

    def stream(self) -> SpeechWindows: ...


class RowStream:
    """The events of one row. Feed it tokens with the states they were chosen in; `flush` after each chunk."""

    def __init__(
        self,
        request_id: str,
        vocabulary: JointVocabulary,
        text_codec: TextDecoder | None,
        speech_codec: SpeechDecoder | None,
    ) -> None:
        self._id = request_id
        self._vocabulary = vocabulary
        self._text_codec = text_codec
        self._speech_codec = speech_codec
        self._state = State.TEXT
        self._at = 0
        self._pieces: list[int] = []
        self._shown = ""
        self._codes: list[int] = []
        side = math.isqrt(vocabulary.image_tokens)
        self._side = side if side**2 == vocabulary.image_tokens else 0  # codes in a row of a picture; 0: no rows
        self._image_rows = 0  # of the picture being drawn, told so far
        self._windows: SpeechWindows | None = None

    def push(self, token: int, state: State) -> Iterator[Event]:
        """Events that this token settles; speech waits for `flush` or for the end of its span."""
        v = self._vocabulary
        if state != self._state:
            self._state = state
            yield StateChange(self._id, self._at, state)
        self._at += 1
        if state in (State.TEXT, State.TRANSCRIPT):
            if token in v.text:
                self._pieces.append(int(v.text_pieces([token])[0]))
                yield from self._text(last=False)
            else:
                yield from self._text(last=True)
                self._pieces, self._shown = [], ""
        elif state == State.SPEECH:
            if token == v.eoa:
                yield self._speech(last=True)
                self._windows = None
            else:
                self._codes.append(token)
        elif state == State.IMAGE:
            if token == v.eoi:
                yield ImageDone(self._id, self._at, v.image_codes(self._codes))
                self._codes, self._image_rows = [], 0
            else:
                self._codes.append(token)

    def flush(self) -> Iterator[Event]:
        """Speech, and whole rows of a picture, gathered since the last flush."""
        if self._state == State.SPEECH and self._codes:
            yield self._speech(last=False)
        elif self._state == State.IMAGE and self._side:
            first, rows = self._image_rows, len(self._codes) // self._side
            if rows > first:
                codes = self._vocabulary.image_codes(self._codes[first * self._side : rows * self._side])
                yield ImageRows(self._id, self._at, first, codes.reshape(-1, self._side))
                self._image_rows = rows

    def finish(self) -> Iterator[Event]:
        """Call once after the last token."""
        yield StateChange(self._id, self._at, State.DONE)

    def _text(self, *, last: bool) -> Iterator[Event]:
        if self._text_codec is None or not self._pieces:
            return
        text = self._text_codec.decode(self._pieces)
        # Bytes of a character still to come decode to U+FFFD at the end: hold them back.
        settled = text if last else text.rstrip("\ufffd")
        if len(settled) > len(self._shown):
            yield TextPiece(self._id, self._at, settled[len(self._shown) :], self._state)
            self._shown = settled

    def _speech(self, *, last: bool) -> SpeechChunk:
        codes = self._vocabulary.speech_codes(self._codes)
        self._codes = []
        samples = None
        if self._speech_codec is not None:
            self._windows = self._windows or self._speech_codec.stream()
            samples = self._windows.push(codes)
            if last:
                samples = np.concatenate([samples, self._windows.close()])
        return SpeechChunk(self._id, self._at, codes, samples, last)
