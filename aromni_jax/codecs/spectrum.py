"""Short-time spectra in JAX: analysis, mel filters, synthesis, and phases by the fast Griffin-Lim algorithm.

Shapes: b batch, n samples, f frames, w window, q frequency bins, m mel bands.
Frame i is centred on the middle of hop i, with zeros beyond both ends, so n samples give exactly n / hop frames and
back. The window is four hops long (or another whole number of them).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def _hann(window: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)


def stft(wave_bn: jax.Array | np.ndarray, hop: int, window: int) -> jax.Array:
    """float32 [b, n], n a multiple of `hop` -> complex64 [b, n / hop, window / 2 + 1], periodic Hann window."""
    pad = (window - hop) // 2
    hops = jnp.pad(wave_bn, ((0, 0), (pad, window - hop - pad))).reshape(wave_bn.shape[0], -1, hop)
    frames = wave_bn.shape[1] // hop
    blocks = [hops[:, start : start + frames] for start in range(window // hop)]
    return jnp.fft.rfft(jnp.concatenate(blocks, axis=-1) * _hann(window)[None, None], axis=-1)


def istft(spectrum_bfq: jax.Array, hop: int, window: int, mask_bf1: jax.Array) -> jax.Array:
    """Inverse of `stft` by weighted overlap-add -> float32 [b, f * hop].

    Args:
      mask_bf1: 1 for frames that exist, 0 for padding, which gives silence and changes no other sample of its row.
    """
    hann_11w = _hann(window)[None, None]
    frames_bfw = jnp.fft.irfft(spectrum_bfq, n=window, axis=-1) * hann_11w * mask_bf1
    signal = _overlap_add(frames_bfw, hop)
    envelope = _overlap_add(jnp.broadcast_to(hann_11w**2, frames_bfw.shape) * mask_bf1, hop)
    return signal / jnp.maximum(envelope, 1e-3) * jnp.repeat(mask_bf1[..., 0], hop, axis=1)


def _overlap_add(frames_bfw: jax.Array, hop: int) -> jax.Array:
    batch, frames, window = frames_bfw.shape
    count = window // hop
    parts = frames_bfw.reshape(batch, frames, count, hop)
    shifted = [jnp.pad(parts[:, :, part], ((0, 0), (part, count - 1 - part), (0, 0))) for part in range(count)]
    total = jnp.sum(jnp.stack(shifted), axis=0).reshape(batch, -1)
    pad = (window - hop) // 2
    return total[:, pad : pad + frames * hop]


def griffin_lim(
    magnitude_bfq: jax.Array, hop: int, window: int, mask_bf1: jax.Array, rounds: int, momentum: float = 0.5
) -> jax.Array:
    """A wave whose spectrum has about these magnitudes -> float32 [b, f * hop].

    Fast Griffin-Lim (Perraudin et al. 2013). Their momentum of 0.99 comes closer to given magnitudes, but to a judge's
    ear it is no better on those of a decoder, and it enlarges rounding errors tenfold. Starts from the phases that
    steady tones at the bins' centres would have, with a fixed scatter over bins: no random numbers, hence the same
    wave for the same codes in any batch.
    """
    frames, bins = magnitude_bfq.shape[1:]
    advance = np.outer(np.arange(frames), np.arange(bins)) * (hop / window)
    scatter = np.arange(bins) ** 2 * (np.sqrt(5) - 1) / 2
    start_fq = jnp.asarray(np.exp(2j * np.pi * ((advance + scatter) % 1.0)).astype(np.complex64))
    magnitude_bfq = magnitude_bfq * mask_bf1

    def refine(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        target, previous = carry
        wave_bn = istft(target, hop, window, mask_bf1)
        consistent = stft(wave_bn, hop, window)
        pushed = consistent + momentum * (consistent - previous)
        phase = pushed / jnp.maximum(jnp.abs(pushed), 1e-8)
        return (magnitude_bfq * phase, consistent), None

    first = magnitude_bfq * start_fq[None]
    (target, _), _ = jax.lax.scan(refine, (first, first), None, length=rounds)
    return istft(target, hop, window, mask_bf1)


@functools.lru_cache
def mel_filters(sample_rate: int, window: int, mels: int) -> np.ndarray:
    """Triangular filters, even on the mel scale of Slaney (1998), each of unit area -> float32 [q, m]."""
    edges = _from_mel(np.linspace(_to_mel(0.0), _to_mel(sample_rate / 2), mels + 2))
    bins = np.linspace(0, sample_rate / 2, window // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return (np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


# Linear below 1 kHz, 27 steps per factor 6.4 above.
def _to_mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def _from_mel(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
