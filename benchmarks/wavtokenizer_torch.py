"""WavTokenizer in PyTorch, for comparison only: transformers' EnCodec encoder, and the decoder of SPEC 8.3.

EnCodec's encoder is WavTokenizer's with other numbers. Of the decoder no package has all parts (PyPI's vocos lacks the
attention), so it stands here, with the modules of PyTorch and the names of the published weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import fold, gelu, layer_norm, silu
from torch.nn.utils.parametrize import remove_parametrizations
from transformers import EncodecConfig
from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecEncoder

from aromni_jax.codecs.wavtokenizer import LSTM_LAYERS, WavTokenizerConfig

_ENCODER = "feature_extractor.encodec.encoder.model."
CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"
_EPSILON = 1e-6


class TorchWavTokenizer:
    """One utterance after the other, each as long as it is: padded batches would change its codes and its sound."""

    name = "PyTorch"

    def __init__(self, config: WavTokenizerConfig, weights: Mapping[str, np.ndarray], threads: int) -> None:
        torch.set_num_threads(threads)
        state = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
        self._encoder = _encoder(config, state)
        self._codebook_ke = state[CODEBOOK]
        self._decoder = Decoder(config).eval()
        names = self._decoder.state_dict()
        self._decoder.load_state_dict({name: state[name] for name in names})

    @torch.inference_mode()
    def vectors(self, wave_n: np.ndarray) -> np.ndarray:
        """float32 samples -> float32 [t, e], not yet quantised."""
        return self._encoder(torch.from_numpy(wave_n)[None, None])[0].T.numpy()

    @torch.inference_mode()
    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 samples of each -> its codes."""
        return [self._codes(wave_n[None])[0] for wave_n in waves]

    @torch.inference_mode()
    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of each -> its samples, float32."""
        return [self._samples(row[None])[0] for row in codes]

    def _codes(self, wave_bn: np.ndarray) -> np.ndarray:
        x_bte = self._encoder(torch.from_numpy(wave_bn)[:, None]).transpose(1, 2)
        distance_btk = (self._codebook_ke**2).sum(dim=1) - 2 * x_bte @ self._codebook_ke.T
        return distance_btk.argmin(dim=2).numpy()

    def _samples(self, codes_bt: np.ndarray) -> np.ndarray:
        return self._decoder(self._codebook_ke[torch.tensor(codes_bt).long()].transpose(1, 2)).numpy()


class PaddedTorchWavTokenizer(TorchWavTokenizer):
    """All utterances as one batch, filled up to the longest: shorter ones come out otherwise than alone."""

    name = "PyTorch, padded"

    @torch.inference_mode()
    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 samples of each -> its codes."""
        hop = self._decoder.head.hop
        codes = self._codes(_fill_up(waves))
        return [row[: -(-len(wave_n) // hop)] for row, wave_n in zip(codes, waves, strict=True)]

    @torch.inference_mode()
    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of each -> its samples, float32."""
        hop = self._decoder.head.hop
        samples = self._samples(_fill_up(codes))
        return [wave_n[: len(row) * hop] for wave_n, row in zip(samples, codes, strict=True)]


def _fill_up(rows: Sequence[np.ndarray]) -> np.ndarray:
    """One array of rows of any lengths, zeros behind them."""
    filled = np.zeros((len(rows), max(map(len, rows))), rows[0].dtype)
    for place, row in zip(filled, rows, strict=True):
        place[: len(row)] = row
    return filled


def _encoder(config: WavTokenizerConfig, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """transformers' encoder with these weights, the weight norm folded as ours is."""
    encoder = EncodecEncoder(
        EncodecConfig(
            sampling_rate=config.sample_rate,
            hidden_size=config.embed,
            num_filters=config.channels,
            upsampling_ratios=list(reversed(config.strides)),
            use_causal_conv=False,
            num_lstm_layers=LSTM_LAYERS,
        )
    )
    renamed = {}
    for name in encoder.state_dict():
        published = _ENCODER + name.removeprefix("layers.").replace(".conv.", ".conv.conv.")
        published = published.replace("parametrizations.weight.original0", "weight_g")
        renamed[name] = state[published.replace("parametrizations.weight.original1", "weight_v")]
    encoder.load_state_dict(renamed)
    for module in encoder.modules():
        if isinstance(module, EncodecConv1d):
            remove_parametrizations(module.conv, "weight")
    return encoder.eval()


class Decoder(nn.Module):
    """[b, e, t] -> [b, t * hop]; always as for the first bandwidth."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.head = Head(config)

    def forward(self, x_bet: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x_bet))


class Backbone(nn.Module):
    """[b, e, t] -> [b, t, c]."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.embed = nn.Conv1d(config.embed, dim, 7, padding=3)
        blocks = [Residual(dim), Residual(dim), Attention(dim), Residual(dim), Residual(dim)]
        self.pos_net = nn.Sequential(*blocks, nn.GroupNorm(32, dim, eps=_EPSILON))
        self.norm = AdaptiveNorm(config)
        self.convnext = nn.ModuleList([ConvNeXt(config) for _ in range(config.blocks)])
        self.final_layer_norm = nn.LayerNorm(dim, eps=_EPSILON)

    def forward(self, x_bet: torch.Tensor) -> torch.Tensor:
        x_bct = self.norm(self.pos_net(self.embed(x_bet)).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x_bct = block(x_bct)
        return self.final_layer_norm(x_bct.transpose(1, 2))


class Residual(nn.Module):
    """Two convolutions behind norms."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(32, dim, eps=_EPSILON) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv1d(dim, dim, 3, padding=1) for _ in range(2))

    def forward(self, x_bct: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(silu(self.norm1(x_bct)))
        return x_bct + self.conv2(silu(self.norm2(hidden)))


class Attention(nn.Module):
    """One head over all frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, dim, eps=_EPSILON)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(dim, dim, 1) for _ in range(4))

    def forward(self, x_bct: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x_bct)
        q_btc, k_btc, v_btc = (project(normed).transpose(1, 2) for project in (self.q, self.k, self.v))
        mixed_btc = nn.functional.scaled_dot_product_attention(q_btc, k_btc, v_btc)
        return x_bct + self.proj_out(mixed_btc.transpose(1, 2))


class AdaptiveNorm(nn.Module):
    """Layer norm whose scale and shift belong to a bandwidth."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Embedding(config.conditions, config.dim) for _ in range(2))

    def forward(self, x_btc: torch.Tensor) -> torch.Tensor:
        return layer_norm(x_btc, x_btc.shape[-1:], self.scale.weight[0], self.shift.weight[0], _EPSILON)


class ConvNeXt(nn.Module):
    """A convolution per channel, then a wide layer per frame."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(config.dim, config.dim, 7, padding=3, groups=config.dim)
        self.norm = AdaptiveNorm(config)
        self.pwconv1, self.pwconv2 = nn.Linear(config.dim, config.hidden), nn.Linear(config.hidden, config.dim)
        self.gamma = nn.Parameter(torch.ones(config.dim))

    def forward(self, x_bct: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.dwconv(x_bct).transpose(1, 2))
        return x_bct + (self.gamma * self.pwconv2(gelu(self.pwconv1(hidden)))).transpose(1, 2)


class Head(nn.Module):
    """[b, t, c] -> [b, t * hop], by the inverse of a spectrum per frame."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        self.out = nn.Linear(config.dim, config.window + 2)
        self.hop, self.window = config.hop, config.window
        self.register_buffer("hann", torch.hann_window(config.window), persistent=False)

    def forward(self, x_btc: torch.Tensor) -> torch.Tensor:
        magnitude, phase = self.out(x_btc).chunk(2, dim=-1)
        magnitude = magnitude.exp().clip(max=100)
        frames_btw = torch.fft.irfft(torch.polar(magnitude, phase), self.window) * self.hann
        envelope_btw = self.hann.square().expand(1, frames_btw.shape[1], -1)
        pad = (self.window - self.hop) // 2
        signal, envelope = (self._overlap_add(x)[:, pad:-pad] for x in (frames_btw, envelope_btw))
        return signal / envelope

    def _overlap_add(self, frames_btw: torch.Tensor) -> torch.Tensor:
        size = (frames_btw.shape[1] - 1) * self.hop + self.window
        kernel, stride = (1, self.window), (1, self.hop)
        return fold(frames_btw.transpose(1, 2), (1, size), kernel, stride=stride)[:, 0, 0]
