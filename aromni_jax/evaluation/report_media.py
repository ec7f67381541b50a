"""Media inside of a page: data URIs, spectrogram pictures, sizes of small pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

_WINDOW_SECONDS = 0.032
_SILENCE = -40.0  # dB; a tone at full scale has about 40
_RANGE = 60  # dB from the darkest to the brightest colour
_WIDE_ENOUGH = 200  # pixels
_STOPS = np.array([(22, 20, 48), (40, 62, 118), (28, 128, 138), (112, 190, 110), (250, 236, 140)])


def data_uri(media_type: str, content: bytes) -> str:
    """A file as the source of an element."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def png_uri(image: Image.Image) -> str:
    """A picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def enlargement(width: int) -> int:
    """By how much a picture of so many pixels is enlarged to be seen: a whole number."""
    return max(1, round(_WIDE_ENOUGH / width))


def coloured(image: np.ndarray) -> Image.Image:
    """uint8 [h, w] -> picture in colours from dark blue (0) to light yellow (255), in 32 steps: half the bytes."""
    palette = [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(_STOPS)), stops) for stops in _STOPS.T]
    picture = Image.fromarray(image & 0xF8)
    picture.putpalette(np.stack(palette, axis=1).round().astype(np.uint8).tobytes())
    return picture


def mel_decibels(wave_n: np.ndarray, sample_rate: int, bands: int = 56, most_frames: int = 360) -> np.ndarray:
    """float [n] -> dB of mel bands up to half the rate, [bands, frames], low pitch in the last row."""
    window = round(_WINDOW_SECONDS * sample_rate)
    hop = max(window // 4, -(-len(wave_n) // most_frames))
    padded_n = np.pad(wave_n, (window // 2, window // 2))
    frames_tw = np.lib.stride_tricks.sliding_window_view(padded_n, window)[::hop] * np.hanning(window)
    power_tf = np.abs(np.fft.rfft(frames_tw)) ** 2
    hertz_f = np.fft.rfftfreq(window, 1 / sample_rate)
    top = 2595 * np.log10(1 + hertz_f[-1] / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    rise = (hertz_f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz_f) / (edges[2:] - edges[1:-1])[:, None]
    filters_mf = np.maximum(np.minimum(rise, fall), 0)
    # Narrow low bands can fall between two bins: give each the bin nearest to its centre.
    filters_mf[np.arange(bands), np.abs(hertz_f - edges[1:-1, None]).argmin(axis=1)] += 1e-3
    decibel_mt = 10 * np.log10(filters_mf @ power_tf.T / filters_mf.sum(axis=1, keepdims=True) + 1e-10)
    return decibel_mt[::-1]


def spectrogram_uri(decibel_mt: np.ndarray, loudest: float | None = None) -> str:
    """Picture of `mel_decibels`; the brightest colour is `loudest` dB (its own maximum), the darkest 60 dB below.

    Of what nobody would hear, all is dark.
    """
    top = max(decibel_mt.max(), _SILENCE) if loudest is None else loudest
    return png_uri(coloured(np.clip((decibel_mt - top + _RANGE) / _RANGE * 255, 0, 255).astype(np.uint8)))
