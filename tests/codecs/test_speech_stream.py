"""Streams against whole-utterance decoding: on a codec whose reach is known, and on the real ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.codecs import SpeechCodec, speech
from aromni_jax.codecs.streaming import SpeechStream
from aromni_jax.errors import UserError


class Smear:
    """A codec whose samples depend on `reach` codes to each side."""

    hop = 5

    def __init__(self, reach: int) -> None:
        self.reach = reach
        self.longest = 0

    def decode(self, codes, width=None):
        self.longest = max(self.longest, codes.shape[1])
        kernel = np.arange(1, 2 * self.reach + 2)
        rows = [np.convolve(np.pad(row, self.reach), kernel, "valid") for row in np.asarray(codes, np.float32)]
        return np.repeat(np.stack(rows), self.hop, axis=1)


def streamed(codec, codes, cuts=(), **sizes):
    stream = SpeechStream(codec, **sizes)
    parts = [stream.push(part) for part in np.split(codes, sorted(cuts))]
    return np.concatenate([*parts, stream.close()])


CODES = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda codes: np.asarray(codes, np.int32))
CUTS = st.sets(st.integers(0, 120), max_size=6)


@settings(max_examples=60)
@given(CODES, CUTS, st.integers(1, 9), st.integers(1, 9))
def test_equal_to_the_whole_within_the_codecs_reach(codes, cuts, first, step):
    codec = Smear(reach=4)
    # A seam's code is decoded by two windows; both must see the codec's reach around it. Windows may begin 3 later.
    sizes = {"lookahead": 5, "window": 3 + 4 + max(first, step) + 5, "first": first, "step": step}
    wave = streamed(codec, codes, {min(cut, len(codes)) for cut in cuts}, **sizes)
    np.testing.assert_allclose(wave, Smear(reach=4).decode(codes[None])[0])
    assert codec.longest <= sizes["window"]


@settings(max_examples=30)
@given(CODES, CUTS)
def test_the_cuts_between_pushes_change_nothing(codes, cuts):
    sizes = {"window": 14, "lookahead": 2, "first": 3, "step": 5}
    whole = streamed(Smear(reach=6), codes, **sizes)
    np.testing.assert_array_equal(
        streamed(Smear(reach=6), codes, {min(cut, len(codes)) for cut in cuts}, **sizes), whole
    )


def test_streams_side_by_side_and_short_ones():
    sizes, codec = {"window": 24, "lookahead": 3, "first": 8, "step": 8}, Smear(reach=3)
    rows = np.random.default_rng(0).integers(0, 7, (2, 40))
    streams, waves = [SpeechStream(codec, **sizes) for _ in rows], [[], []]
    for start in range(0, 40, 3):
        for stream, wave, row in zip(streams, waves, rows, strict=True):
            wave.append(stream.push(row[start : start + 3]))
    for stream, wave, row in zip(streams, waves, rows, strict=True):
        np.testing.assert_array_equal(np.concatenate([*wave, stream.close()]), streamed(Smear(reach=3), row, **sizes))
        assert len(stream.close()) == 0, "nothing comes twice"
    for length in (0, 1, 7, 8, 10, 11):
        assert len(streamed(codec, rows[0, :length], **sizes)) == length * codec.hop


@pytest.mark.parametrize("sizes", [{"window": 40, "lookahead": 4}, {"window": 26, "lookahead": 9}])
def test_windows_too_short_for_the_codec_differ(sizes):
    """Else the equality above would not notice a window that is cut at random."""
    codes = np.arange(60) % 7
    wave = streamed(Smear(reach=8), codes, first=16, step=16, **sizes)
    assert wave.shape == (300,)
    assert np.abs(wave - Smear(reach=8).decode(codes[None])[0]).max() > 1


def test_first_samples_come_after_first_and_lookahead():
    stream = SpeechStream(Smear(reach=1), window=32, lookahead=3, first=4, step=8)
    counts = [len(stream.push(np.asarray([n % 7]))) for n in range(40)]
    assert [n + 1 for n, count in enumerate(counts) if count] == [4 + 3, 12 + 3, 20 + 3, 28 + 3, 36 + 3]
    assert [count for count in counts if count] == [20, 40, 40, 40, 40]
    assert len(stream.close()) == 4 * 5


class Whistle:
    """Every window comes with a level of its own, as a codec would that finds new phases for each."""

    hop = 100

    def __init__(self) -> None:
        self.calls = 0

    def decode(self, codes, width=None):
        self.calls += 1
        return np.full((1, codes.shape[1] * self.hop), self.calls, np.float32)


def test_seams_fade():
    wave = streamed(Whistle(), np.zeros(40, np.int32), window=20, lookahead=2, first=8, step=8)
    assert set(wave) >= {1, 2, 3, 4}
    assert np.abs(np.diff(wave)).max() < 0.02, "no step, although neighbouring windows differ by 1"
    joined = streamed(Whistle(), np.zeros(40, np.int32), window=20, lookahead=0, first=8, step=8)
    assert np.abs(np.diff(joined)).max() == 1


def test_misuse():
    for sizes in ({"window": 8, "lookahead": 1, "first": 8}, {"lookahead": -1}, {"step": 0}, {"first": 0}):
        with pytest.raises(UserError, match="window"):
            SpeechStream(Smear(reach=1), **sizes)
    stream = SpeechStream(Smear(reach=1))
    with pytest.raises(UserError, match="one row of whole numbers"):
        stream.push(np.zeros((1, 3), np.int32))
    with pytest.raises(UserError, match="one row of whole numbers"):
        stream.push(np.zeros(3))
    assert len(stream.push([])) == len(stream.close()) == 0
    with pytest.raises(UserError, match="closed"):
        stream.push([1])


def test_the_small_codec_streams():
    codec = SpeechCodec.load("numbers")
    codes = np.random.default_rng(0).integers(0, codec.num_codes, 70)
    stream, compiled = codec.stream(window=40, lookahead=8, first=8, step=24), speech._decode._cache_size()
    first, rest = stream.push(codes[:16]), [stream.push(codes[16:]), stream.close()]
    assert len(first) == 8 * codec.hop
    assert speech._decode._cache_size() == compiled + 1, "windows of all lengths share one"
    wave = np.concatenate([first, *rest])
    assert wave.shape == (70 * codec.hop,) and np.isfinite(wave).all() and np.abs(wave).max() <= 1
    with pytest.raises(UserError, match=r"outside 0\.\.255"):
        codec.stream().push(np.full(40, 256))
    with pytest.raises(UserError, match=r"outside 0\.\.255"):
        codec.stream().push(np.full(40, 2**32 + 5))  # 5, in 32 bits
