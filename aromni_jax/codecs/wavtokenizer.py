"""WavTokenizer (Ji et al. 2024): one codebook, tens of codes per second; every configuration of the family (SPEC 8)."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aromni_jax.codecs import vocos, vq
from aromni_jax.codecs.seanet import Encoder
from aromni_jax.codecs.vocos import Decoder
from aromni_jax.errors import UserError

LSTM_LAYERS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class WavTokenizerConfig:
    """Shape of the codec; the defaults are those of WavTokenizer-small-600-24k-4096.

    Attributes:
      sample_rate: hertz.
      strides: of the encoder's layers, in their order (the published files give them reversed).
      channels: of the encoder's first layer; they double with every stride.
      embed: width of the codebook's vectors. codes: how many there are.
      dim, hidden, blocks: channels, inner channels and number of the decoder's ConvNeXt blocks.
      conditions: rows of its adaptive norms (`bandwidth_id`).
      window: samples under one spectrum.
    """

    sample_rate: int = 24_000
    strides: tuple[int, ...] = (4, 5, 5, 6)
    channels: int = 32
    embed: int = 512
    codes: int = 4096
    dim: int = 768
    hidden: int = 2304
    blocks: int = 12
    conditions: int = 4
    window: int = 2400

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))  # JSON knows lists only
        for name, value in vars(self).items():
            sizes = value if name == "strides" else (value,)
            if not sizes or not all(type(size) is int and size > 0 for size in sizes):
                raise UserError(f"WavTokenizer's {name} must be positive whole numbers, not {value!r}")
        if self.dim % vocos.GROUPS or self.window % self.hop or (self.window - self.hop) % 2:
            raise UserError(
                f"WavTokenizer with {self.dim} decoder channels, hop {self.hop} and window {self.window} is not "
                f"supported: the first is a multiple of {vocos.GROUPS}, the last one of the hop, their difference even"
            )

    @property
    def hop(self) -> int:
        """Samples per code."""
        return math.prod(self.strides)

    @classmethod
    def from_published(cls, description: Any) -> "WavTokenizerConfig":
        """From the object that the published yaml file holds.

        Width and first channels of the encoder do not stand there (512 and 32 in the original's code); the optional
        object `reduced_overrides_of_hard_coded_values` {"dimension", "n_filters"} changes them.

        Raises:
          UserError: an entry is missing, or asks for what WavTokenizer is not (several codebooks, another padding).
        """
        encoder, backbone, head = (_arguments(description, part) for part in ("feature_extractor", "backbone", "head"))
        fixed = description.get("reduced_overrides_of_hard_coded_values", {})
        try:
            config = cls(
                sample_rate=description["model"]["init_args"]["sample_rate"],
                strides=tuple(reversed(encoder["dowmsamples"])),  # spelt so in the original
                channels=fixed.get("n_filters", cls.channels),
                embed=fixed.get("dimension", cls.embed),
                codes=encoder["vq_bins"],
                dim=backbone["dim"],
                hidden=backbone["intermediate_dim"],
                blocks=backbone["num_layers"],
                conditions=backbone["adanorm_num_embeddings"],
                window=head["n_fft"],
            )
            same = {
                "feature_extractor.num_quantizers": (encoder["num_quantizers"], 1),
                "backbone.input_channels": (backbone["input_channels"], config.embed),
                "head.dim": (head["dim"], config.dim),
                "head.hop_length": (head["hop_length"], config.hop),
                "head.padding": (head.get("padding", "same"), "same"),
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"not a WavTokenizer config: {error!r} where its entries were looked up") from error
        for name, (found, wanted) in same.items():
            if found != wanted:
                raise UserError(f"{name} is {found!r}; with the rest of this config it can only be {wanted!r}")
        return config


def _arguments(description: Any, part: str) -> Mapping[str, Any]:
    try:
        return description["model"]["init_args"][part]["init_args"]
    except (KeyError, TypeError) as error:
        raise UserError(f"not a WavTokenizer config: no model.init_args.{part}.init_args") from error


class WavTokenizerNet(nnx.Module):
    """Encoder and decoder without the codebook."""

    def __init__(self, config: WavTokenizerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        self.encoder = Encoder(c.channels, c.embed, c.strides, LSTM_LAYERS, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(
            c.embed, c.dim, c.hidden, c.blocks, c.conditions, c.hop, c.window, dtype=dtype, rngs=rngs
        )


@dataclasses.dataclass(frozen=True)
class WavTokenizer:
    """`WavTokenizerNet` with its codebook, as `speech.SpeechCodec` wants it.

    Loudness is coded; a last piece shorter than a code is mirrored at its end. Parameters: {"net": nested dict,
    "codebook": float32 [k, e]}, always float32.

    Attributes:
      dtype: of the operands of convolutions and matrix products; norms, softmax, codebook and head stay float32.
      bandwidth_id: row of the decoder's adaptive norms.
    """

    config: WavTokenizerConfig
    dtype: str = "float32"
    bandwidth_id: int = 0
    architecture: ClassVar[str] = "wavtokenizer"
    stored: ClassVar[type] = np.float32

    @classmethod
    def create(cls, values: Mapping[str, Any], *, dtype: str, bandwidth_id: int) -> "WavTokenizer":
        """From the config of a card; TypeError when its names are not those of `WavTokenizerConfig`."""
        config = WavTokenizerConfig(**values)
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"WavTokenizer computes in float32 or bfloat16, not {dtype!r}")
        if not 0 <= bandwidth_id < config.conditions:
            raise UserError(f"bandwidth {bandwidth_id} is outside 0..{config.conditions - 1}")
        return cls(config, dtype, bandwidth_id)

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
        vq.check_params(self.build, params, (self.config.codes, self.config.embed), where)

    def encode(self, params: vq.Params, wave_bn: jax.Array, samples_b: jax.Array) -> jax.Array:
        """float32 [b, t * hop] -> int32 [b, t]."""
        net = vq.with_params(self.build, params["net"])
        return vq.nearest(params["codebook"], net.encoder(wave_bn, samples_b))

    def decode(self, params: vq.Params, codes_bt: jax.Array, tokens_b: jax.Array) -> jax.Array:
        """int32 [b, t] -> float32 [b, t * hop], zero behind a row's tokens."""
        net = vq.with_params(self.build, params["net"])
        return net.decoder(params["codebook"][codes_bt], tokens_b, self.bandwidth_id)

    def build(self, rngs: nnx.Rngs) -> WavTokenizerNet:
        """The module; nothing is computed under `nnx.eval_shape`."""
        return WavTokenizerNet(self.config, dtype=jnp.dtype(self.dtype), rngs=rngs)
