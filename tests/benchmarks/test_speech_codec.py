"""The agreement and speed of the speech codec's benchmark are what they say."""

import pathlib
import time

import speech_codec

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "golden" / "g6_speech_codec"


def test_agreement_of_both_types():
    found = speech_codec.agreement(str(FOLDER), seconds=1.0, rows=2)
    assert 80 <= found["codes"] < 320
    assert 0.8 < found["same_codes"] <= 1 and 20 < found["snr_db"] < 60, "close, and not the same computation"


def test_speed_leaves_out_the_first_call():
    waits = iter([0.2, 0.01, 0.02, 0.01])
    assert 50 < speech_codec.speed(lambda: time.sleep(next(waits)), 1.0, 3) <= 100


def test_table():
    cell = {"dtype": "float32", "rows": 2, "seconds": 10.0, "encode": 31.0, "decode": 20.5}
    result = {
        "agreement": {"path": "x", "codes": 7, "same_codes": 0.979, "distance_db": 0.18, "snr_db": 40.0},
        "speeds": [cell],
        "repeats": 3,
        "device": "cpu",
        "busy": 0.5,
        "hardware": {"processor": "x", "threads": 2},
        "versions": {},
        "date": "now",
    }
    text = speech_codec.markdown(result)
    assert "| float32 | 2 x 10 | 31.0 | 20.5 |" in text and "97.9 % of 7 codes" in text and "50 %" in text
