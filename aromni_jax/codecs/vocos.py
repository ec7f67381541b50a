"""The decoder of WavTokenizer: frames -> spectra -> samples, without any upsampling layer (SPEC 8.3).

Shapes: b batch, t frames (queries), s frames (keys), c channels, q frequency bins, g groups of channels.
Group norms and attention run over a whole utterance; masks (1 for frames that exist, [b, t, 1]) keep them, and every
convolution, from seeing what lies behind a row's end, so a row gives the same samples in any batch.
Source: Vocos, Siuzdak 2023 (ConvNeXt blocks and the ISTFT head), with the attention of WavTokenizer, Ji et al. 2024.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from aromni_jax.codecs import spectrum
from aromni_jax.codecs.seanet import in_chunks, precision

GROUPS = 32
_EPSILON = 1e-6  # of every norm here
_DEPTHWISE = 7  # kernel, in frames
_CHUNK = 2048  # frames: what of a long utterance is in memory at once, where that is possible
_QUERIES = 512  # frames whose attention weights are in memory at once
_LOUDEST = 100.0  # magnitudes above are cut off


class MaskedGroupNorm(nnx.Module):
    """Group norm whose mean and variance are those of the frames that exist."""

    def __init__(self, channels: int):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x_btc: jax.Array, mask_bt1: jax.Array) -> jax.Array:
        batch, frames, channels = x_btc.shape
        x_btgc = x_btc.astype(jnp.float32).reshape(batch, frames, GROUPS, channels // GROUPS)
        mask = mask_bt1[..., None]
        count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1) * (channels // GROUPS)
        mean = jnp.sum(x_btgc * mask, axis=(1, 3), keepdims=True) / count
        variance = jnp.sum(jnp.square((x_btgc - mean) * mask), axis=(1, 3), keepdims=True) / count
        normed_btc = ((x_btgc - mean) * jax.lax.rsqrt(variance + _EPSILON)).reshape(x_btc.shape)
        return normed_btc * self.scale[...][None, None] + self.bias[...][None, None]


class FrameConv(nnx.Module):
    """Convolution along frames, zeros beyond both ends of a row, same number of frames out."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, groups: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs, outputs, (kernel,), padding=[(kernel // 2, kernel // 2)], feature_group_count=groups, dtype=dtype,
            precision=precision(dtype), rngs=rngs,
        )  # fmt: skip

    def __call__(self, x_btc: jax.Array, mask_bt1: jax.Array) -> jax.Array:
        return self.conv(x_btc * mask_bt1)


class ResidualBlock(nnx.Module):
    """x + conv(swish(norm(conv(swish(norm(x))))))."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1, self.norm2 = MaskedGroupNorm(channels), MaskedGroupNorm(channels)
        self.conv1 = FrameConv(channels, channels, 3, dtype=dtype, rngs=rngs)
        self.conv2 = FrameConv(channels, channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x_btc: jax.Array, mask_bt1: jax.Array) -> jax.Array:
        hidden = self.conv1(jax.nn.swish(self.norm1(x_btc, mask_bt1)), mask_bt1)
        return x_btc + self.conv2(jax.nn.swish(self.norm2(hidden, mask_bt1)), mask_bt1)


class AttentionBlock(nnx.Module):
    """x + attention of one head over all frames of the row."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, channels, channels, dtype=dtype, precision=precision(dtype), rngs=rngs)
        self.norm = MaskedGroupNorm(channels)
        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()
        self.dtype = dtype

    def __call__(self, x_btc: jax.Array, mask_bt1: jax.Array) -> jax.Array:
        normed = self.norm(x_btc, mask_bt1)
        mixed = self._attend(self.query(normed), self.key(normed), self.value(normed), mask_bt1[..., 0])
        return x_btc + self.out(mixed)

    def _attend(self, query_btc: jax.Array, key_bsc: jax.Array, value_bsc: jax.Array, mask_bs: jax.Array) -> jax.Array:
        product = functools.partial(jnp.einsum, precision=precision(self.dtype), preferred_element_type=jnp.float32)
        batch, frames, channels = query_btc.shape

        def attend(query_btc: jax.Array) -> jax.Array:
            score_bts = product("btc,bsc->bts", query_btc, key_bsc) * channels**-0.5
            score_bts = jnp.where(mask_bs[:, None] > 0, score_bts, jnp.finfo(jnp.float32).min)
            return product("bts,bsc->btc", jax.nn.softmax(score_bts).astype(self.dtype), value_bsc)

        if frames <= _QUERIES:
            return attend(query_btc)
        # An utterance of minutes: the weights of some queries at a time, so that memory grows with its length only.
        blocks = -(-frames // _QUERIES)
        padded = jnp.pad(query_btc, ((0, 0), (0, blocks * _QUERIES - frames), (0, 0)))
        mixed_pbtc = jax.lax.map(attend, padded.reshape(batch, blocks, _QUERIES, channels).swapaxes(0, 1))
        return mixed_pbtc.swapaxes(0, 1).reshape(batch, -1, channels)[:, :frames]


class AdaptiveLayerNorm(nnx.Module):
    """Layer norm over channels whose scale and shift belong to a condition (a bandwidth, in the original)."""

    def __init__(self, channels: int, conditions: int):
        self.scale = nnx.Param(jnp.ones((conditions, channels)))
        self.shift = nnx.Param(jnp.zeros((conditions, channels)))

    def __call__(self, x_btc: jax.Array, condition: int) -> jax.Array:
        x_btc = x_btc.astype(jnp.float32)
        centred = x_btc - x_btc.mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + _EPSILON)
        return normed * self.scale[...][condition][None, None] + self.shift[...][condition][None, None]


class ConvNeXtBlock(nnx.Module):
    """x + gamma * (a convolution of every channel by itself, a norm, and a wide layer per frame)."""

    def __init__(self, channels: int, hidden: int, conditions: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, dtype=dtype, precision=precision(dtype), rngs=rngs)
        self.depthwise = FrameConv(channels, channels, _DEPTHWISE, groups=channels, dtype=dtype, rngs=rngs)
        self.norm = AdaptiveLayerNorm(channels, conditions)
        self.widen, self.narrow = linear(channels, hidden), linear(hidden, channels)
        self.gamma = nnx.Param(jnp.ones(channels))

    def __call__(self, x_btc: jax.Array, mask_bt1: jax.Array, condition: int) -> jax.Array:
        hidden = self.widen(self.norm(self.depthwise(x_btc, mask_bt1), condition))
        return x_btc + self.gamma[...][None, None] * self.narrow(jax.nn.gelu(hidden, approximate=False))


class Decoder(nnx.Module):
    """Vectors of codes -> samples.

    Args:
      inputs: width of the vectors. channels, hidden, blocks, conditions: of the ConvNeXt part.
      hop: samples per frame. window: samples under one spectrum, a multiple of the hop.
    """

    def __init__(
        self, inputs: int, channels: int, hidden: int, blocks: int, conditions: int, hop: int, window: int, *,
        dtype: jnp.dtype, rngs: nnx.Rngs,
    ):  # fmt: skip
        residual = functools.partial(ResidualBlock, channels, dtype=dtype, rngs=rngs)
        self.embed = FrameConv(inputs, channels, 7, dtype=dtype, rngs=rngs)
        attention = AttentionBlock(channels, dtype=dtype, rngs=rngs)
        self.mix = nnx.List([residual(), residual(), attention, residual(), residual()])
        self.mix_norm = MaskedGroupNorm(channels)
        self.norm = AdaptiveLayerNorm(channels, conditions)
        self.blocks = nnx.List(
            [ConvNeXtBlock(channels, hidden, conditions, dtype=dtype, rngs=rngs) for _ in range(blocks)]
        )
        self.final_norm = nnx.LayerNorm(channels, epsilon=_EPSILON, use_fast_variance=False, rngs=rngs)
        # Phases are angles of many turns: they keep float32 whatever the rest computes in.
        self.out = nnx.Linear(channels, window + 2, precision=jax.lax.Precision.HIGHEST, rngs=rngs)
        self.hop, self.window = hop, window

    def __call__(self, x_btc: jax.Array, frames_b: jax.Array, condition: int) -> jax.Array:
        """float32 [b, t, inputs] -> float32 [b, t * hop], zero behind a row's frames."""

        def samples(piece_btc: jax.Array, start: jax.Array | int) -> jax.Array:
            mask_bt1 = mask(frames_b - start, piece_btc.shape[1])
            wave_bn = self.head(self.sharpen(piece_btc, mask_bt1, condition), mask_bt1)
            return wave_bn.reshape(*piece_btc.shape[:2], self.hop)

        wave_bth = in_chunks(samples, self.blend(x_btc, mask(frames_b, x_btc.shape[1])), _CHUNK, self.reach())
        return wave_bth.reshape(x_btc.shape[0], -1)

    def blend(self, x_btc: jax.Array, mask_bt1: jax.Array) -> jax.Array:
        """What looks at the whole utterance: [b, t, inputs] -> float32 [b, t, channels]."""
        x = self.embed(x_btc, mask_bt1)
        for block in self.mix:
            x = block(x, mask_bt1)
        return self.mix_norm(x, mask_bt1)

    def sharpen(self, x_btc: jax.Array, mask_bt1: jax.Array, condition: int) -> jax.Array:
        """What looks at neighbours only: float32 [b, t, channels], twice."""
        x = self.norm(x_btc, condition)
        for block in self.blocks:
            x = block(x, mask_bt1, condition)
        return self.final_norm(x)

    def head(self, x_btc: jax.Array, mask_bt1: jax.Array) -> jax.Array:
        """float32 [b, t, channels] -> samples [b, t * hop]."""
        log_magnitude_btq, phase_btq = jnp.split(self.out(x_btc), 2, axis=-1)
        magnitude_btq = jnp.minimum(jnp.exp(log_magnitude_btq), _LOUDEST)
        spectrum_btq = jax.lax.complex(magnitude_btq * jnp.cos(phase_btq), magnitude_btq * jnp.sin(phase_btq))
        return spectrum.istft(spectrum_btq, self.hop, self.window, mask_bt1)

    def reach(self) -> int:
        """Frames to each side of its own that the samples of a frame depend on, behind `blend`."""
        return len(self.blocks) * (_DEPTHWISE // 2) + self.window // self.hop // 2


def mask(frames_b: jax.Array, size: int) -> jax.Array:
    """1 for frames that exist, 0 behind them: float32 [b, size, 1]."""
    return (jnp.arange(size)[None] < frames_b[:, None])[..., None].astype(jnp.float32)
