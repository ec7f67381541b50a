"""The figures of the codecs' table are what they say."""

import numpy as np
import pytest
import small_codecs

from aromni_jax.evaluation import standards
from aromni_jax.worlds import load_world


class _Names:
    """Sees the same number everywhere."""

    def read(self, picture):
        assert picture.dtype == np.uint8
        return "three four"


@pytest.fixture
def judged(monkeypatch):
    class Hears:
        name = "hears"

        def transcribe(self, wave, sample_rate=16_000):
            return "one two" if np.abs(wave).max() > 0 else ""

    monkeypatch.setattr(small_codecs, "make_judge", lambda name, standard: Hears())
    monkeypatch.setattr(standards.Standard, "make_image_judge", lambda self, world: _Names())


def test_figures_and_table(judged):
    world = load_world("numbers")
    pictures = small_codecs.pictures(world, 20)
    assert pictures["named_right_original"] == pictures["named_right_copy"] == ("34" in world.strings("test")) / 20
    assert 15 < pictures["psnr_db"] < 25 and 0.7 < pictures["ssim"] < 1
    speech = small_codecs.speech(world, 4, ["hears"], world.voice)
    rates = speech["judges"]["hears"]
    assert rates["original"]["wer"] == rates["copy"]["wer"] > 0.5 and speech["log_spectral_distance_db"] < 10
    worlds = {"numbers": {"pictures": pictures, "speech": {"voice hibari": speech}}}
    text = small_codecs.table({"date": "now", "hardware": {"processor": "x"}, "worlds": worlds})
    assert "| numbers, n=20 | 32 | 0.143 |" in text and "| numbers, voice hibari, n=4 | 320 |" in text
