"""The small speech codec: mono speech <-> one code per 25 ms, by log-mel frames and the Griffin-Lim algorithm."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aromni_jax.codecs import folder as store
from aromni_jax.codecs import spectrum, vq
from aromni_jax.errors import UserError

_FLOOR = 1e-2  # of magnitudes before the logarithm: some 70 dB below loud speech, so that codes are not spent on noise
_MOST_GAIN = 20.0  # silence stays silent
_SMALLEST_BUCKET = 16  # tokens
_LARGEST_BATCH = 32
Ragged = np.ndarray | Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """Shape of the codec.

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


@functools.partial(jax.jit, static_argnames="config")
def _encode(params: vq.Params, wave_bn: jax.Array, tokens_b: jax.Array, config: SpeechConfig) -> jax.Array:
    net = vq.with_params(lambda rngs: SpeechNet(config, rngs=rngs), params["net"])
    mask_bt1 = _mask(tokens_b, wave_bn.shape[1] // config.hop)
    return vq.nearest(params["codebook"], net.encode(log_mel(log_magnitude(wave_bn, config), config), mask_bt1))


@functools.partial(jax.jit, static_argnames="config")
def _decode(params: vq.Params, codes_bt: jax.Array, tokens_b: jax.Array, config: SpeechConfig) -> jax.Array:
    net = vq.with_params(lambda rngs: SpeechNet(config, rngs=rngs), params["net"])
    mask_bt1 = _mask(tokens_b, codes_bt.shape[1])
    logs_bfq = net.decode(params["codebook"][codes_bt], mask_bt1)
    mask_bf1 = jnp.repeat(mask_bt1, config.frames_per_token, axis=1)
    # No wave in [-1, 1] has magnitudes above e**6; what the floor added is taken off, or silence would hiss.
    magnitude_bfq = jnp.maximum(jnp.exp(jnp.minimum(logs_bfq, 7.0)) - _FLOOR, 0.0)
    wave_bn = spectrum.griffin_lim(magnitude_bfq, config.frame, config.window, mask_bf1, config.rounds)
    return jnp.clip(wave_bn, -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class SpeechCodec:
    """Speech <-> codes in [0, num_codes), `tokens_per_second` of them.

    Every row of a batch gives what it gives alone: what lies behind a row's end is silence and is masked. A last
    piece shorter than a token is filled up with silence.

    Attributes:
      params: {"net": nested dict of arrays, "codebook": float32 [k, e]}.
      fingerprint: 16 hex digits of config and weights.
    """

    config: SpeechConfig
    params: vq.Params
    fingerprint: str

    @classmethod
    def load(cls, path_or_name: str | os.PathLike) -> "SpeechCodec":
        """From a codec folder or the name of a shipped world; UserError when there is none or it is damaged."""
        folder: Path = store.find(path_or_name, "speech")
        card = store.read_card(folder, "speech")
        try:
            config = SpeechConfig(**card["config"])
        except TypeError as error:
            raise UserError(f"{folder / store.CARD}: {error}; fetch the codec again") from error
        params = store.read_params(folder, card)
        vq.check_params(lambda rngs: SpeechNet(config, rngs=rngs), params, (config.codes, config.embed), folder)
        return cls(config, jax.tree.map(jnp.asarray, params), store.fingerprint(card["config"], card["sha256"]))

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        return self.config.codes

    @property
    def sample_rate(self) -> int:
        """Hertz, of the waves on both sides."""
        return self.config.sample_rate

    @property
    def hop(self) -> int:
        """Samples per token."""
        return self.config.hop

    @property
    def tokens_per_second(self) -> float:
        """Codes per second of speech."""
        return self.sample_rate / self.hop

    @property
    def codebook(self) -> np.ndarray:
        """float32 [num_codes, e]: the vectors that the codes stand for."""
        return np.asarray(self.params["codebook"])

    def encode(self, wave_bn: np.ndarray, lengths: Sequence[int] | None = None) -> np.ndarray | list[np.ndarray]:
        """float [B, n] at `sample_rate` -> int32 [B, ceil(n / hop)].

        With `lengths` (samples per row; what lies behind is not heard) a list of int32 [ceil(length / hop)].
        Raises UserError: no samples, another shape or dtype, NaN, a length outside 1..n.
        """
        wave_bn = np.asarray(wave_bn)
        if wave_bn.ndim != 2 or not wave_bn.size:
            raise UserError(f"speech must be an array [rows, samples] with samples, not {list(wave_bn.shape)}")
        if wave_bn.dtype.kind != "f":
            raise UserError(f"speech has type {wave_bn.dtype}; give floats in [-1, 1]")
        samples_b = self._lengths(lengths, wave_bn, "samples")
        wave_bn = np.where(np.arange(wave_bn.shape[1]) < samples_b[:, None], wave_bn, 0).astype(np.float32)
        if not np.isfinite(wave_bn).all():
            raise UserError("speech holds NaN or infinite values")
        tokens_b = -(-samples_b // self.hop)
        rows = self._run(_encode, wave_bn, tokens_b, self.hop)
        return np.stack(rows) if lengths is None else rows

    def decode(self, codes: Ragged, lengths: Sequence[int] | None = None) -> np.ndarray | list[np.ndarray]:
        """int [B, T] -> float32 [B, T * hop] in [-1, 1].

        With `lengths` (codes per row) or a list of int [T_i] in place of an array, a list of float32 [T_i * hop].
        Raises UserError: a code out of range, another shape, a length outside 0..T.
        """
        if not isinstance(codes, np.ndarray) and lengths is None:
            lengths = [len(row) for row in codes]
            width = max(lengths, default=0)
            rows = [vq.check_codes(row, self.num_codes, "speech") for row in codes]
            codes = np.zeros((len(rows), width), np.int32)
            for padded, row in zip(codes, rows, strict=True):
                padded[: len(row)] = row
        codes_bt = vq.check_codes(codes, self.num_codes, "speech")
        if codes_bt.ndim != 2:
            raise UserError(f"speech codes must be [rows, tokens], not {list(codes_bt.shape)}")
        tokens_b = self._lengths(lengths, codes_bt, "codes")
        waves = self._run(_decode, codes_bt, tokens_b, 1)
        waves = [wave[: tokens * self.hop] for wave, tokens in zip(waves, tokens_b, strict=True)]
        return waves if lengths is not None else np.stack(waves) if waves else np.zeros((0, 0), np.float32)

    def _lengths(self, lengths: Sequence[int] | None, data_bn: np.ndarray, what: str) -> np.ndarray:
        rows, size = data_bn.shape
        lengths_b = np.full(rows, size) if lengths is None else np.asarray(lengths, np.int64)
        smallest = 1 if what == "samples" else 0
        if lengths_b.shape != (rows,) or (rows and not smallest <= lengths_b.min() <= lengths_b.max() <= size):
            raise UserError(
                f"speech lengths {lengths_b.tolist()} do not fit {rows} rows of {size} {what} (each {smallest}..{size})"
            )
        return lengths_b

    def _run(
        self, function: Callable[..., jax.Array], data_bn: np.ndarray, tokens_b: np.ndarray, per_token: int
    ) -> list[np.ndarray]:
        """Runs a jitted function on batches padded to a few sizes, longest rows together -> one array per row."""
        results = [np.empty(0)] * len(data_bn)
        order = np.argsort(-tokens_b, kind="stable")
        for start in range(0, len(order), _LARGEST_BATCH):
            rows = order[start : start + _LARGEST_BATCH]
            width = vq.bucket(int(tokens_b[rows].max()), _SMALLEST_BUCKET) * per_token
            padded = np.zeros((vq.bucket(len(rows)), width), data_bn.dtype)
            known = data_bn[rows, :width]
            padded[: len(rows), : known.shape[1]] = known
            counts = np.zeros(len(padded), np.int32)
            counts[: len(rows)] = tokens_b[rows]
            output = np.asarray(function(self.params, padded, counts, self.config))
            for row, values in zip(rows, output[: len(rows)], strict=True):
                results[row] = values[: tokens_b[row]] if per_token > 1 else values
        return results
