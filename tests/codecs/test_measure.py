"""The distances are what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.codecs import measure


def tone(hertz, level=1.0):
    return level * np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000).astype(np.float32)


def test_distances_of_waves():
    wave = tone(440) + tone(1000, 0.1)
    assert measure.log_spectral_distance(wave, wave) == 0
    assert measure.signal_to_noise(wave, wave) == 99
    assert measure.signal_to_noise(wave, 0.9 * wave) == pytest.approx(20, abs=0.01)
    noise = np.random.default_rng(0).normal(size=16_000)
    assert measure.log_spectral_distance(noise, 0.5 * noise) == pytest.approx(6.02, abs=0.02)
    assert measure.log_spectral_distance(noise, -noise) == 0, "phases do not count"


@pytest.mark.parametrize("samples", [1, 1023, 1024, 5000])
def test_distances_of_silence_and_of_short_waves_are_finite(samples):
    silence, noise = np.zeros(samples, np.float32), np.random.default_rng(0).normal(size=samples)
    for pair in ((silence, silence), (silence, noise), (noise, silence)):
        assert np.isfinite(measure.log_spectral_distance(*pair)) and abs(measure.signal_to_noise(*pair)) <= 99


def test_a_silent_file_does_not_swamp_the_mean_of_a_folder():
    hiss = np.random.default_rng(0).normal(size=5000) * 10**-4.5  # 90 dB below full scale
    assert measure.log_spectral_distance(np.zeros(5000), hiss) < 20
    assert measure.log_spectral_distance(np.zeros(5000), tone(440)[:5000]) < 90


def test_a_long_wave_is_measured_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(2, 20_000)) * np.linspace(0.01, 1, 20_000)
    whole = measure.log_spectral_distance(*pair)
    monkeypatch.setattr(measure, "_SPECTRA_AT_ONCE", 7)
    assert measure.log_spectral_distance(*pair) == pytest.approx(whole, rel=1e-9)


def slow_ssim(first, second):
    """Window by window, as the paper's equations read."""
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(first.shape[0] - 10):
        for column in range(first.shape[1] - 10):
            x, y = (image[row : row + 11, column : column + 11].astype(float) for image in (first, second))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


def test_ssim_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (17, 23), np.uint8)
    second = np.clip(first + rng.normal(0, 30, first.shape), 0, 255).astype(np.uint8)
    assert measure.ssim(first, second) == pytest.approx(slow_ssim(first, second), abs=1e-9)
    colours = [np.stack([image, first, second], axis=-1) for image in (first, second)]
    assert measure.ssim(*colours) == pytest.approx((slow_ssim(first, second) + 2) / 3, abs=1e-9)


@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**31))
def test_ssim_of_any_size_is_symmetric_and_at_most_one(height, width, seed):
    pair = np.random.default_rng(seed).integers(0, 256, (2, height, width), np.uint8)
    assert measure.ssim(*pair) == pytest.approx(measure.ssim(*pair[::-1])) and measure.ssim(*pair) <= 1
    assert measure.ssim(pair[0], pair[0]) == pytest.approx(1)
