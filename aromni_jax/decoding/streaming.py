"""From the tokens of one row, as they come, to events: text in valid UTF-8 cuts, speech in windows, whole pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from aromni_jax.decoding.grammar import State
from aromni_jax.decoding.request import Event, ImageDone, SpeechChunk, StateChange, TextPiece
from aromni_jax.vocabulary import JointVocabulary


class TextDecoder(Protocol):
    """What streaming needs of a text codec."""

    def decode(self, pieces: list[int]) -> str: ...


class SpeechDecoder(Protocol):
    """What streaming needs of a speech codec: `hop` samples per code."""

    @property
    def hop(self) -> int: ...

    def decode(self, codes: np.ndarray) -> np.ndarray | list[np.ndarray]: ...


class SpeechWindow:
    """Decodes an utterance piece by piece.

    A window of codes is decoded with `context` codes before and `lookahead` after the part that is kept, so that a
    codec that reaches no further gives the samples of whole-utterance decoding. One that does (or that finds a phase
    of its own for each window) is blended over one code at each seam, so that the seam does not click.
    """

    def __init__(self, codec: SpeechDecoder, context: int = 40, lookahead: int = 8) -> None:
        self._codec, self._context, self._lookahead = codec, context, lookahead
        self._codes = np.zeros(0, np.int32)
        self._sent = 0
        self._beyond = np.zeros(0, np.float32)  # what the last window said about the code after its part

    def push(self, codes: np.ndarray, *, last: bool) -> np.ndarray:
        """Samples that are settled by now, float32 [n]; with `last`, all that remain."""
        self._codes = np.concatenate([self._codes, codes])
        have = len(self._codes)
        ready = have if last else max(have - self._lookahead, self._sent)
        if ready == self._sent:
            return np.zeros(0, np.float32)
        start = max(0, self._sent - self._context)
        wave = np.array(self._codec.decode(self._codes[None, start:])[0], np.float32)
        hop = self._codec.hop
        piece = wave[(self._sent - start) * hop : (ready - start) * hop]
        seam = len(self._beyond)
        rising = np.linspace(0, 1, seam, dtype=np.float32)
        piece[:seam] = rising * piece[:seam] + (1 - rising) * self._beyond
        self._beyond = wave[(ready - start) * hop : (ready - start + 1) * hop]
        self._sent = ready
        return piece


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
        self._window: SpeechWindow | None = None

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
                self._window = None
            else:
                self._codes.append(token)
        elif state == State.IMAGE:
            if token == v.eoi:
                yield ImageDone(self._id, self._at, v.image_codes(self._codes))
                self._codes = []
            else:
                self._codes.append(token)

    def flush(self) -> Iterator[Event]:
        """Speech gathered since the last flush."""
        if self._state == State.SPEECH and self._codes:
            yield self._speech(last=False)

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
            self._window = self._window or SpeechWindow(self._speech_codec)
            samples = self._window.push(codes, last=last)
        return SpeechChunk(self._id, self._at, codes, samples, last)
