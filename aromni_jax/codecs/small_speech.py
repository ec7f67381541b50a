"""The small speech network: log-mel frames in, one code per 25 ms; the Griffin-Lim algorithm finds the phases."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aromni_jax.codecs import spectrum, vq
from aromni_jax.errors import UserError

_FLOOR = 1e-2  # of magnitudes before the logarithm: some 70 dB below loud speech, so that codes are not spent on noise
_MOST_GAIN = 20.0  # silence stays silent


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """Shape of the codec; ValueError if it cannot be.

    Attributes:
      sample_rate: hertz. frame: samples between spectra. window: samples under one spectrum.
      frames_per_token: spectra that one token stands for.
      mels: mel bands that the encoder sees.
      loudness: root mean square of the loud parts that the encoder brings every utterance to; how loud it was is
        not coded, so no code is spent on it.
      centre, scale: of the log-mel values in training; the encoder sees (value - centre) / scale.
      dim: channels. look, depth: blocks of the encoder and the decoder, `kernel` tokens wide each.
      codes, embed: size of the codebook.
      rounds: of the Griffin-Lim algorithm.
    """

    sample_rate: int = 16_000
    frame: int = 200
    window: int = 800
    frames_per_token: int = 2
    mels: int = 80
    loudness: float = 0.08
    centre: float = -4.0
    scale: float = 2.0
    dim: int = 128
    look: int = 1
    depth: int = 4
    kernel: int = 3
    codes: int = 256
    embed: int = 16
    rounds: int = 32

    def __post_init__(self) -> None:
        vq.check_sizes(self, none_of=("look", "depth", "rounds"))
        if self.window % self.frame:
            raise ValueError(f"window={self.window} is no multiple of frame={self.frame}")

    @property
    def hop(self) -> int:
        """Samples per token."""
        return self.frame * self.frames_per_token


class SpeechNet(nnx.Module):
    """Encoder and decoder without codebook and phases; masks are 0 or 1, [b, tokens, 1]."""

    def __init__(self, config: SpeechConfig, *, rngs: nnx.Rngs):
        self.config = config
        c, bins = config, config.window // 2 + 1
        self.frames = nnx.Linear(c.mels * c.frames_per_token, c.dim, rngs=rngs)
        self.look = nnx.List([vq.Residual(c.dim, (c.kernel,), rngs=rngs) for _ in range(c.look)])
        self.embed = nnx.Linear(c.dim, c.embed, rngs=rngs)
        self.start = nnx.Linear(c.embed, c.dim, rngs=rngs)
        self.blocks = nnx.List(
            [vq.Residual(c.dim, (c.kernel,), dilation=2 ** (i % 3), rngs=rngs) for i in range(c.depth)]
        )
        self.norm = nnx.LayerNorm(c.dim, epsilon=1e-5, rngs=rngs)
        self.bins = nnx.Linear(c.dim, c.frames_per_token * bins, rngs=rngs)

    def encode(self, mel_bfm: jax.Array, mask_bt1: jax.Array) -> jax.Array:
        """Log-mel float32 [b, tokens * frames_per_token, mels] -> [b, tokens, embed], to be quantised."""
        config = self.config
        mel = (mel_bfm - config.centre) / config.scale
        x = jax.nn.gelu(self.frames(mel.reshape(*mask_bt1.shape[:2], -1))) * mask_bt1
        for block in self.look:
            x = block(x, mask_bt1)
        return self.embed(x)

    def decode(self, z_bte: jax.Array, mask_bt1: jax.Array) -> jax.Array:
        """[b, tokens, embed] -> log-magnitudes [b, tokens * frames_per_token, window / 2 + 1]."""
        x = self.start(z_bte) * mask_bt1
        for block in self.blocks:
            x = block(x, mask_bt1)
        out = self.bins(self.norm(x)) + self.config.centre
        return out.reshape(out.shape[0], -1, self.config.window // 2 + 1)


def log_magnitude(wave_bn: jax.Array | np.ndarray, config: SpeechConfig) -> jax.Array:
    """float32 [b, n] -> natural logarithm of the magnitudes at one loudness, [b, n / frame, window / 2 + 1].

    The level of an utterance is the mean over frames, weighted with their power, of the logarithm of the power: silence
    before, between and behind the words does not count.
    """
    magnitude_bfq = jnp.abs(spectrum.stft(wave_bn, config.frame, config.window))
    power_bf = jnp.mean(magnitude_bfq**2, axis=-1) / (0.375 * config.window) + 1e-12
    level_b = jnp.exp(0.5 * jnp.sum(power_bf * jnp.log(power_bf), axis=-1) / jnp.sum(power_bf, axis=-1))
    gain_b = jnp.clip(config.loudness / level_b, 1 / _MOST_GAIN, _MOST_GAIN)
    return jnp.log(magnitude_bfq * gain_b[:, None, None] + _FLOOR)


def log_mel(log_bfq: jax.Array, config: SpeechConfig) -> jax.Array:
    """Log-magnitudes -> log-mel values [b, f, mels]."""
    filters = spectrum.mel_filters(config.sample_rate, config.window, config.mels)
    filters = filters / filters.sum(axis=0).clip(1e-6)  # a band is the mean of its bins: the scale of the bins is kept
    return jnp.log(jnp.exp(log_bfq) @ filters + _FLOOR)


def _mask(tokens_b: jax.Array, size: int) -> jax.Array:
    return (jnp.arange(size)[None] < tokens_b[:, None])[..., None].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class SmallSpeech:
    """`SpeechNet` with its codebook, as `speech.SpeechCodec` wants it.

    Loudness is not coded, waves come back in [-1, 1]. Parameters: {"net": nested dict, "codebook": float32 [k, e]}.
    """

    config: SpeechConfig
    architecture: ClassVar[str] = "small"
    stored: ClassVar[type] = np.float16  # the codec's error is far above its rounding

    @classmethod
    def create(cls, values: Mapping[str, Any], *, dtype: str, bandwidth_id: int) -> "SmallSpeech":
        """From the config of a card; TypeError when its names are not those of `SpeechConfig`, or ValueError."""
        if dtype != "float32" or bandwidth_id:
            raise UserError("the small speech codec computes in float32 and has no bandwidths; leave both options out")
        return cls(SpeechConfig(**values))

    @property
    def sample_rate(self) -> int:
        """Hertz."""
        return self.config.sample_rate

    @property
    def hop(self) -> int:
        """Samples per code."""
        return self.config.hop

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        return self.config.codes

    def check(self, params: vq.Params, where: Path) -> None:
        """UserError unless these are this network's parameters."""
        vq.check_params(self._build, params, (self.config.codes, self.config.embed), where)

    def encode(self, params: vq.Params, wave_bn: jax.Array, samples_b: jax.Array) -> jax.Array:
        """float32 [b, t * hop], zero behind a row's samples -> int32 [b, t]."""
        config, net = self.config, vq.with_params(self._build, params["net"])
        mask_bt1 = _mask(-(-samples_b // config.hop), wave_bn.shape[1] // config.hop)
        return vq.nearest(params["codebook"], net.encode(log_mel(log_magnitude(wave_bn, config), config), mask_bt1))

    def decode(self, params: vq.Params, codes_bt: jax.Array, tokens_b: jax.Array) -> jax.Array:
        """int32 [b, t] -> float32 [b, t * hop], zero behind a row's tokens."""
        config, net = self.config, vq.with_params(self._build, params["net"])
        mask_bt1 = _mask(tokens_b, codes_bt.shape[1])
        logs_bfq = net.decode(params["codebook"][codes_bt], mask_bt1)
        mask_bf1 = jnp.repeat(mask_bt1, config.frames_per_token, axis=1)
        # No wave in [-1, 1] has magnitudes above e**6; what the floor added is taken off, or silence would hiss.
        magnitude_bfq = jnp.maximum(jnp.exp(jnp.minimum(logs_bfq, 7.0)) - _FLOOR, 0.0)
        wave_bn = spectrum.griffin_lim(magnitude_bfq, config.frame, config.window, mask_bf1, config.rounds)
        return jnp.clip(wave_bn, -1.0, 1.0)

    def _build(self, rngs: nnx.Rngs) -> SpeechNet:
        return SpeechNet(self.config, rngs=rngs)
