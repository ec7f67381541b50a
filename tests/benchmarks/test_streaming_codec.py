"""The figures of the streaming table are what they say."""

import numpy as np
import pytest
import streaming_codec

from aromni_jax.codecs import SpeechCodec


def tone(hertz, level=1.0):
    return level * np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000).astype(np.float32)


def test_distances():
    wave = tone(440) + tone(1000, 0.1)
    assert streaming_codec.log_spectral_distance(wave, wave) == 0
    assert streaming_codec.signal_to_noise(wave, wave) == 99
    assert streaming_codec.signal_to_noise(wave, 0.9 * wave) == pytest.approx(20, abs=0.01)
    noise = np.random.default_rng(0).normal(size=16_000)
    assert streaming_codec.log_spectral_distance(noise, 0.5 * noise) == pytest.approx(6.02, abs=0.02)
    assert streaming_codec.log_spectral_distance(noise, -noise) == 0, "phases do not count"


def test_speech_one_code_at_a_time():
    codec = SpeechCodec.load("numbers")
    rows = codec.encode(*streaming_codec.speech_waves(codec, seconds=1.0, rows=2))
    assert all(40 <= len(row) < 160 for row in rows)
    sizes = {"window": 24, "lookahead": 4, "first": 8, "step": 8}
    wave, needed = streaming_codec.streamed(codec, rows[0], **sizes)
    assert needed == 12 and len(wave) == len(rows[0]) * codec.hop
    cell = streaming_codec.errors(codec, rows, codec.decode(rows), **sizes)
    assert 0 < cell["distance_db"] < 3 and cell["first_audio_codes"] == 12 and cell["first_audio_ms"] == 300
    result = {
        "codec": {"path": "numbers", "fingerprint": "0", "network": "mel", "hop": 400},
        "speech": {"codes": [40, 41]},
        "shuffled_codes_distance_db": 9,
        "windows": [cell],
        "firsts": [{**cell, "lookahead": 2}, {**cell, "first": 4}, {**cell, "first": 4, "lookahead": 2}, cell],
        "hardware": {"processor": "x"},
        "versions": {},
        "date": "now",
    }
    lines = streaming_codec.markdown(result).splitlines()
    assert f"| 24 | {cell['distance_db']:.2f} / {cell['snr_db']:.1f} |" in lines
    assert (
        "| first \\ look-ahead | 2 | 4 |" in lines and sum(line.startswith(("| 4 |", "| 8 |")) for line in lines) == 2
    )
