"""The speech codec: rates, true batches, ranges, and what the shipped weights can do."""

import json

import jax
import numpy as np
import pytest

from aromni_jax.buckets import bucket
from aromni_jax.codecs import SpeechCodec, folder, spectrum
from aromni_jax.codecs import speech as speech_module
from aromni_jax.codecs.measure import held_out_utterances, mel_distance, round_trip, speech_figures
from aromni_jax.errors import UserError
from aromni_jax.worlds import load_world
from aromni_jax.worlds.numbers import NumbersWorld

SHIPPED = folder.find("numbers", "speech")


@pytest.fixture(scope="module")
def codec():
    return SpeechCodec.load("numbers")


@pytest.fixture(scope="module")
def waves():
    return held_out_utterances(NumbersWorld.load(), 6)


def padded(waves, size=None, filler=0.0):
    rows = np.full((len(waves), size or max(map(len, waves))), filler, np.float32)
    for row, wave in zip(rows, waves, strict=True):
        row[: len(wave)] = wave
    return rows


def test_shapes_and_rate(codec, waves):
    assert codec.tokens_per_second == 40
    assert codec.hop == 400
    batch = padded(waves)
    codes = codec.encode(batch)
    assert codes.shape == (6, -(-batch.shape[1] // 400))
    assert codes.dtype == np.int32
    assert codes.min() >= 0
    assert codes.max() < codec.num_codes
    wave = codec.decode(codes)
    assert wave.shape == (6, codes.shape[1] * 400)
    assert wave.dtype == np.float32
    assert np.abs(wave).max() <= 1


@pytest.mark.parametrize(("samples", "tokens"), [(1, 1), (399, 1), (400, 1), (401, 2), (16_000, 40)])
def test_a_last_piece_is_filled_up(codec, samples, tokens):
    wave = np.random.default_rng(0).normal(0, 0.1, (1, samples)).astype(np.float32)
    codes = codec.encode(wave)
    assert codes.shape == (1, tokens)
    longer = np.pad(wave, ((0, 0), (0, tokens * 400 - samples)))
    np.testing.assert_array_equal(codec.encode(longer), codes)
    assert codec.decode(codes).shape == (1, tokens * 400)


def test_rows_give_what_they_give_alone(codec, waves):
    """Lengths mask: neither the other rows nor what lies behind a row's end changes it.

    Codes are equal; for waves, 32 rounds of the phase search enlarge the rounding of another batch shape to about 1e-4.
    """
    batch = padded(waves, size=40_000, filler=0.3)
    codes = codec.encode(batch, [len(wave) for wave in waves])
    for wave, row in zip(waves, codes, strict=True):
        np.testing.assert_array_equal(codec.encode(wave[None])[0], row)

    codes = [row[: len(row) // 2] for row in codes]  # ends amid speech, where a mask matters most
    decoded = codec.decode(codes)
    array = np.full((6, max(map(len, codes)) + 5), codes[0][len(codes[0]) // 2], np.int32)
    for row, values in zip(array, codes, strict=True):
        row[: len(values)] = values
    with_lengths = codec.decode(array, [len(row) for row in codes])
    without_lengths = codec.decode(array)
    differences = []
    for index, row in enumerate(codes):
        alone = codec.decode(row[None])[0]
        assert alone.shape == (len(row) * 400,)
        np.testing.assert_allclose(decoded[index], alone, atol=5e-4)
        np.testing.assert_allclose(with_lengths[index], alone, atol=5e-4)
        differences.append(np.abs(without_lengths[index, : len(alone)] - alone).max())
    assert max(differences) > 1e-2, "lengths must matter"


def test_many_rows_keep_their_order(codec, waves):
    lengths = [len(wave) for wave in waves] * 6
    codes = codec.encode(padded(waves * 6), lengths)
    alone = codec.encode(padded(waves), lengths[:6])
    for index, row in enumerate(codes):
        np.testing.assert_array_equal(row, alone[index % 6])


@pytest.mark.parametrize(
    ("tokens", "width"), [(1, 16), (17, 32), (120, 128), (129, 144), (256, 256), (257, 288), (400, 416), (1025, 1152)]
)
def test_widths_of_calls(tokens, width):
    assert speech_module._width(tokens) == width


def test_mixed_lengths_are_padded_little(monkeypatch):
    """Sorted and cut where a batch is full, these rows take twice their tokens."""
    monkeypatch.setattr(speech_module.jax, "default_backend", lambda: "tpu")
    lengths = [584, 460, 388, 316, 264, 216, 160, 124, 108, 88, 72, 52]
    widths = [speech_module._width(length) for length in lengths]

    def tokens(calls):
        starts = np.cumsum([0, *calls[:-1]])
        return sum(widths[start] * bucket(count) for start, count in zip(starts, calls, strict=True))

    calls = speech_module._split(widths, devices=1)
    assert sum(calls) == len(lengths) and len(calls) <= 6
    assert tokens(calls) < 1.4 * sum(lengths) and tokens([5, 7]) > 1.9 * sum(lengths)
    assert speech_module._split([512] * 20, devices=1) == [8, 8, 4], "a batch holds 4096 tokens"
    assert speech_module._split([16] * 6, devices=4) == [6] and speech_module._split([], devices=1) == []
    monkeypatch.undo()
    assert speech_module._split([128] * 6 + [64] * 2, devices=1) == [4, 4], "on a CPU 512"


def test_loudness_is_not_coded(codec, waves):
    quiet, loud = (codec.encode(waves[0][None] * gain)[0] for gain in (0.3, 1.0))
    assert np.mean(quiet == loud) > 0.9


def test_silence(codec):
    codes = codec.encode(np.zeros((1, 16_000), np.float32))
    assert np.abs(codec.decode(codes)).max() < 0.02


def test_same_codes_same_wave(codec, waves):
    codes = codec.encode(waves[0][None])
    np.testing.assert_array_equal(codec.decode(codes), SpeechCodec.load(SHIPPED).decode(codes))


def test_no_new_compilation_for_a_new_length(codec, waves):
    codec.decode([np.zeros(40, np.int32)] * 3)
    before = speech_module._decode._cache_size()
    for size in (33, 35, 48):
        codec.decode([np.zeros(size, np.int32)] * 3)
    assert speech_module._decode._cache_size() == before


@pytest.mark.parametrize(
    ("wave", "lengths"),
    [
        (np.zeros((1, 0), np.float32), None),
        (np.zeros(800, np.float32), None),
        (np.zeros((1, 800), np.int16), None),
        (np.full((1, 800), np.nan, np.float32), None),
        (np.zeros((2, 800), np.float32), [800]),
        (np.zeros((1, 800), np.float32), [801]),
        (np.zeros((1, 800), np.float32), [0]),
        (np.zeros((1, 800), np.float32), [799.5]),
        (np.zeros((1, 800), np.float32), ["a"]),
        ([[0.0], [0.0, 1.0]], None),
    ],
)
def test_bad_waves(codec, wave, lengths):
    with pytest.raises(UserError):
        codec.encode(wave, lengths)


def test_nan_behind_the_end_is_not_heard(codec, waves):
    batch = padded(waves[:1], size=40_000, filler=np.nan)
    np.testing.assert_array_equal(codec.encode(batch, [len(waves[0])])[0], codec.encode(waves[0][None])[0])


def test_bad_codes(codec):
    nested = np.zeros((2, 1, 1), np.int32)
    rows = ([np.array([codec.num_codes])], [np.array([-1])], np.zeros(4, np.int32), [np.zeros(3)], [1, 2], list(nested))
    for bad in (*rows, jax.numpy.zeros(3, int)):
        with pytest.raises(UserError):
            codec.decode(bad)
    with pytest.raises(UserError):
        codec.decode(np.zeros((2, 4), np.int32), [5, 1])
    with pytest.raises(UserError, match="different lengths"):
        codec.decode([[1, 2], [3]], [2, 1])


def test_nothing_to_decode(codec):
    assert codec.decode([]) == []
    assert codec.encode(np.zeros((0, 801))).shape == (0, 3)
    waves = codec.decode([[], np.zeros(2, np.int32)])
    assert [len(wave) for wave in waves] == [0, 800]


@pytest.mark.parametrize(("world", "furthest", "in_use"), [("numbers", 1.8, 0.4), ("things", 2.4, 0.5)])
def test_shipped_weights_hold_their_figures(world, furthest, in_use):
    """The figures in the card are those of the weights beside it, and good enough to understand."""
    shipped = folder.find(world, "speech")
    card, codec = json.loads((shipped / folder.CARD).read_text()), SpeechCodec.load(world)
    figures, samples = speech_figures(codec, load_world(world))
    assert figures["mel_distance_db"] == pytest.approx(card["figures"]["mel_distance_db"], abs=0.05)
    assert figures["mel_distance_db"] < furthest
    assert figures["perplexity"] > in_use * codec.num_codes
    assert samples.ndim == 1 and len(samples) > 5 * codec.sample_rate


def test_other_codes_are_further_away(codec, waves):
    """The distance that the figures rest on can tell a good copy from a bad one."""
    codes, copies = round_trip(codec, waves)
    wrong = codec.decode([np.random.default_rng(0).permutation(codes[0])])[0][: len(waves[0])]
    assert mel_distance(codec, waves[0], wrong) > 2 * mel_distance(codec, waves[0], copies[0])


def test_spectra_and_back():
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 3200)).astype(np.float32)
    found = spectrum.stft(wave, 200, 800)
    assert found.shape == (2, 16, 401)
    ones = np.ones((2, 16, 1), np.float32)
    np.testing.assert_allclose(spectrum.istft(found, 200, 800, ones), wave, atol=1e-4)
    middle = np.fft.rfft(wave[0, 700:1500] * np.hanning(801)[:-1])  # frame 5 is centred on sample 1100
    np.testing.assert_allclose(found[0, 5], middle, atol=1e-3)


def test_griffin_lim_finds_a_wave_with_these_magnitudes(waves):
    wave = waves[0][None, : len(waves[0]) // 400 * 400]
    target = np.abs(spectrum.stft(wave, 200, 800))
    ones = np.ones((1, target.shape[1], 1), np.float32)
    errors = []
    for rounds in (1, 32):
        found = np.abs(spectrum.stft(spectrum.griffin_lim(target, 200, 800, ones, rounds), 200, 800))
        errors.append(np.linalg.norm(found - target) / np.linalg.norm(target))
    assert errors[1] < 0.1 < errors[0]


def test_mel_filters_cover_all_bins():
    filters = spectrum.mel_filters(16_000, 800, 80)
    assert filters.shape == (401, 80)
    assert (filters.sum(axis=0) > 0).all()
    assert (filters[2:400].sum(axis=1) > 0).all()
