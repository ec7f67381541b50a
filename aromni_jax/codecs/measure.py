"""How much a codec loses: distances of pictures and waves, and figures on the held-out part of a world.

Judges of meaning are in the room `evaluation`.
"""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from aromni_jax.buckets import bucket
from aromni_jax.codecs import vq
from aromni_jax.codecs.image import ImageCodec
from aromni_jax.codecs.small_speech import log_magnitude, log_mel
from aromni_jax.codecs.speech import SpeechCodec
from aromni_jax.codecs.text import TextCodec
from aromni_jax.worlds import World

_SEED = 1234
_SAMPLES = 5
_SPECTRUM, _EVERY = 1024, 256  # samples of the log-spectral distance
_FLOOR = 1e-3  # of the loudest bin: 60 dB below it
_LEAST = _SPECTRUM / 4 * 10**-4.5  # 90 dB below a tone of full scale: what is silent has no loudest bin
_SPECTRA_AT_ONCE = 4096
_SSIM_SIGMA, _SSIM_RADIUS = 1.5, 5  # pixels: a window of 11 x 11


def image_figures(codec: ImageCodec, world: World, count: int = 256) -> tuple[dict[str, Any], np.ndarray]:
    """PSNR (dB, of brightness 0..1, over all pixels) and use of codes on held-out pictures, and a contact sheet.

    The sheet, uint8 [H, W] or [H, W, 3]: columns of pairs, the picture above what the codec makes of it.
    """
    images = held_out_pictures(world, count)
    codes = codec.encode(images)
    back = np.round((codec.decode(codes) + 1) * 127.5).astype(np.uint8).reshape(images.shape)
    figures = {
        "tokens": codec.tokens_per_image,
        "codes": codec.num_codes,
        "psnr_db": round(psnr(images, back), 2),
        "perplexity": round(vq.perplexity(codes, codec.num_codes), 1),
        "pictures": count,
    }
    pairs = np.concatenate([images, back], axis=1)[:32]
    rim = ((0, 0), (1, 1), (1, 1), (0, 0))[: pairs.ndim]
    pairs = np.pad(pairs, rim, constant_values=96)
    rows = [np.concatenate(list(pairs[start : start + 8]), axis=1) for start in range(0, len(pairs) // 8 * 8, 8)]
    return figures, np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1)


def held_out_pictures(world: World, count: int) -> np.ndarray:
    """uint8 [count, H, W(, 3)] from held-out drawings and strings, always the same ones."""
    rng = np.random.default_rng(_SEED)
    strings = list(dict.fromkeys(map(world.naming, world.strings("test"))))
    return np.stack([world.picture(strings[i % len(strings)], rng, split="test") for i in range(count)])


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays of one shape, in dB."""
    error = np.mean((first.astype(np.float64) - second) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two uint8 pictures of one shape, [H, W] or [H, W, C], as Wang et al. (2004) define it.

    Gaussian window of 11 x 11 (sigma 1.5), K1 = 0.01, K2 = 0.03; the mean over the places where the whole window lies
    inside (over all, mirrored at the edges, where a side is shorter than 11), and over the channels. 1: equal.
    """
    x, y = (np.atleast_3d(image).astype(np.float64) for image in (first, second))
    inside = tuple(
        slice(_SSIM_RADIUS, -_SSIM_RADIUS) if size > 2 * _SSIM_RADIUS else slice(None) for size in x.shape[:2]
    )

    def mean(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, _SSIM_SIGMA, radius=_SSIM_RADIUS, mode="reflect", axes=(0, 1))[inside]

    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similar / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean())


def log_spectral_distance(wave_n: np.ndarray, other_n: np.ndarray) -> float:
    """dB between two waves of one length: what an ear could notice, phases do not count.

    Root mean square over bins of the differences of log-magnitudes, mean over spectra of 1024 samples, one every 256;
    bins more than 60 dB below the loudest of `wave_n`, or 90 dB below a tone of full scale, count as so loud.
    """
    pad = (0, max(0, _SPECTRUM - len(wave_n)))
    frames = [
        np.lib.stride_tricks.sliding_window_view(np.pad(wave, pad), _SPECTRUM)[::_EVERY] for wave in (wave_n, other_n)
    ]
    starts = range(0, len(frames[0]), _SPECTRA_AT_ONCE)  # blocks: an hour has a gigabyte of spectra
    floor = max(_LEAST, *(_FLOOR * _magnitudes(frames[0], start).max() for start in starts))
    total = 0.0
    for start in starts:
        first, second = (np.maximum(_magnitudes(row, start), floor) for row in frames)
        total += np.sqrt(np.mean((20 * np.log10(first / second)) ** 2, axis=1)).sum()
    return float(total / len(frames[0]))


def _magnitudes(frames_fw: np.ndarray, start: int) -> np.ndarray:
    """Of a block of frames from `start` on: [f, q]."""
    return np.abs(np.fft.rfft(frames_fw[start : start + _SPECTRA_AT_ONCE] * np.hanning(_SPECTRUM), axis=1))


def signal_to_noise(wave_n: np.ndarray, other_n: np.ndarray) -> float:
    """dB of `wave_n` over the difference, phases count; -99 and less count as -99, 99 and more (rounding) as 99."""
    power, noise = (np.mean(np.square(wave, dtype=np.float64)) for wave in (wave_n, wave_n - other_n))
    return float(np.clip(10 * np.log10(max(power, 1e-20) / max(noise, 1e-20)), -99, 99))


def speech_figures(codec: SpeechCodec, world: World, count: int = 64) -> tuple[dict[str, Any], np.ndarray]:
    """Distance of log-mel values (dB, mean of absolute differences) and use of codes on held-out utterances.

    And float32 [n] to listen to: some utterances, each followed by what the codec makes of it.
    """
    waves = held_out_utterances(world, count)
    codes, back = round_trip(codec, waves)
    distance = np.mean([mel_distance(codec, *pair) for pair in zip(waves, back, strict=True)])
    figures = {
        "tokens_per_second": codec.tokens_per_second,
        "codes": codec.num_codes,
        "mel_distance_db": round(float(distance), 2),
        "perplexity": round(vq.perplexity(np.concatenate(codes), codec.num_codes), 1),
        "utterances": count,
    }
    pause = np.zeros(codec.sample_rate // 4, np.float32)
    heard = [
        piece
        for pair in zip(waves[:_SAMPLES], back[:_SAMPLES], strict=True)
        for wave in pair
        for piece in (wave, pause)
    ]
    return figures, np.concatenate(heard)


def held_out_utterances(world: World, count: int) -> list[np.ndarray]:
    """float32 waves from held-out recordings and strings, always the same ones."""
    rng = np.random.default_rng(_SEED)
    strings = world.strings("test")
    return [world.utterance(strings[i % len(strings)], rng, split="test") for i in range(count)]


def round_trip(codec: SpeechCodec, waves: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Codes of waves, and the waves that they decode to, cut to the lengths that came in."""
    lengths = [len(wave) for wave in waves]
    wave_bn = np.zeros((len(waves), max(lengths)), np.float32)
    for row, wave in zip(wave_bn, waves, strict=True):
        row[: len(wave)] = wave
    codes = list(codec.encode(wave_bn, lengths))
    return codes, [wave[:length] for wave, length in zip(codec.decode(codes), lengths, strict=True)]


def mel_distance(codec: SpeechCodec, first_n: np.ndarray, second_n: np.ndarray) -> float:
    """Mean absolute difference of two waves' log-mel magnitudes, in dB."""
    config = codec.config
    size = bucket(-(-len(first_n) // codec.hop), 16) * codec.hop
    both = np.zeros((2, size), np.float32)
    both[0, : len(first_n)], both[1, : len(second_n)] = first_n, second_n
    mel_bfm = np.asarray(log_mel(log_magnitude(both, config), config))[:, : len(first_n) // config.frame]
    return float(np.abs(mel_bfm[0] - mel_bfm[1]).mean() * 20 / np.log(10))


def text_figures(codec: TextCodec, world: World) -> dict[str, Any]:
    """Pieces per word on held-out strings."""
    texts = [world.text(string) for string in world.strings("test")]
    pieces = sum(len(codec.encode(text)) for text in texts)
    return {"pieces": codec.num_pieces, "pieces_per_word": round(pieces / sum(len(text.split()) for text in texts), 3)}
