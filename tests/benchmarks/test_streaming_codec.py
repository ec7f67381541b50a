"""The figures of the streaming table are what they say."""

import streaming_codec

from aromni_jax.codecs import SpeechCodec


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
