"""Cuts: bursts of speech, text pieces at character borders."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.codecs.streaming import SpeechStream
from aromni_jax.decoding import ImageDone, ImageRows, SpeechChunk, State, StateChange, TextPiece
from aromni_jax.decoding.streaming import RowStream
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.compact(text_pieces=256, image_codes=6, image_tokens=3, speech_codes=7)


class Smear:
    """A speech codec whose samples depend on a code to each side."""

    hop = 5

    def decode(self, codes, width=None):
        rows = [np.convolve(np.pad(row, 1), [1, 2, 3], "valid") for row in np.asarray(codes, np.float32)]
        return np.repeat(np.stack(rows), self.hop, axis=1)

    def stream(self):
        return SpeechStream(self, window=20, lookahead=2, first=4, step=4)


class Bytes:
    """A text codec with one piece per byte."""

    def decode(self, pieces):
        return bytes(pieces).decode(errors="replace")


def push_all(tokens, states, speech_codec=None):
    stream = RowStream("r", V, Bytes(), speech_codec)
    events = [event for pair in zip(tokens, states, strict=True) for event in stream.push(*pair)]
    return [*events, *stream.flush(), *stream.finish()]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12))
def test_text_is_cut_at_characters(text):
    ids = V.text_ids(text.encode()).tolist()
    events = push_all([*ids, V.eos], [State.TEXT] * (len(ids) + 1))
    pieces = [event.text for event in events if isinstance(event, TextPiece)]
    assert "".join(pieces) == text
    assert all(piece in text and "\ufffd" not in piece for piece in pieces if "\ufffd" not in text)


def test_broken_bytes_come_out_at_the_end():
    events = push_all([*V.text_ids([0xE2, 0x82]), V.eos], [State.TEXT] * 3)
    assert [event.text for event in events if isinstance(event, TextPiece)] == ["\ufffd"]


def test_a_whole_answer():
    picture, voice = V.image_ids([0, 5, 2]).tolist(), V.speech_ids([3, 1]).tolist()
    tokens = [V.ins, *V.text_ids(b"a"), V.res, *V.text_ids(b"b"), V.boa, *voice, V.eoa, V.boi, *picture, V.eoi, V.eom]
    states = [0, 1, 1, 0, 0, *[2] * 3, 0, *[3] * 4, 0]
    events = push_all(tokens, [State(state) for state in states], Smear())
    story = [
        (type(event), getattr(event, "text", getattr(event, "state", None)))
        for event in events
    ]  # fmt: skip
    assert story == [
        (StateChange, State.TRANSCRIPT),
        (TextPiece, "a"),
        (StateChange, State.TEXT),
        (TextPiece, "b"),
        (StateChange, State.SPEECH),
        (SpeechChunk, None),
        (StateChange, State.TEXT),
        (StateChange, State.IMAGE),
        (ImageDone, None),
        (StateChange, State.TEXT),
        (StateChange, State.DONE),
    ]
    assert events[1].state == State.TRANSCRIPT and events[3].state == State.TEXT
    assert events[5].codes.tolist() == [3, 1] and events[5].last and events[5].samples.shape == (10,)
    assert events[8].codes.tolist() == [0, 5, 2]
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_pictures_come_in_whole_rows():
    """Of a square picture; what is drawn when a burst ends in the middle of a row waits for the next one."""
    vocabulary = JointVocabulary.compact(text_pieces=256, image_codes=9, image_tokens=9, speech_codes=7)
    stream, told = RowStream("r", vocabulary, None, None), []
    for _ in range(2):  # a second picture begins anew
        tokens = [*vocabulary.image_ids(range(9)).tolist(), vocabulary.eoi]
        for burst in (tokens[:2], tokens[2:7], tokens[7:]):
            for token in burst:
                told += stream.push(token, State.IMAGE)
            told += stream.flush()
        told += stream.push(vocabulary.boi, State.TEXT)
    rows = [event for event in told if isinstance(event, ImageRows)]
    assert [(event.first, event.codes.tolist(), event.at) for event in rows] == [
        (0, [[0, 1, 2], [3, 4, 5]], 7),
        (0, [[0, 1, 2], [3, 4, 5]], 18),
    ]
    whole = [event.codes.tolist() for event in told if isinstance(event, ImageDone)]
    assert whole == [list(range(9))] * 2


@pytest.mark.parametrize("samples", [True, False])
def test_speech_comes_in_bursts(samples):
    codec = Smear() if samples else None
    stream = RowStream("r", V, None, codec)
    codes = V.speech_ids(np.arange(30) % 7).tolist()
    chunks = []
    for burst in np.split(np.asarray([*codes, V.eoa]), [10, 20]):
        for token in burst.tolist():
            chunks += stream.push(token, State.SPEECH)
        chunks += stream.flush()
    chunks = [event for event in chunks if isinstance(event, SpeechChunk)]
    assert [len(chunk.codes) for chunk in chunks] == [10, 10, 10]
    assert [chunk.last for chunk in chunks] == [False, False, True]
    if samples:
        wave = np.concatenate([chunk.samples for chunk in chunks])
        np.testing.assert_allclose(wave, codec.decode(V.speech_codes(codes)[None])[0])
        assert len(chunks[0].samples) == 8 * 5, "two parts of four codes; two more wait for those behind them"
    else:
        assert all(chunk.samples is None for chunk in chunks)
