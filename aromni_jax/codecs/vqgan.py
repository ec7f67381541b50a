"""The Chameleon VQGAN (SPEC 7): a convolutional encoder and decoder around a codebook, for square RGB pictures.

Modules and their attributes have the names of the published checkpoints, so that one rule maps the weights
(`vqgan_weights.table`). Arrays are channels-last, [b, h, w, c], kernels [h, w, in, out]: what TPUs want.
All matrix products ask for full float32 precision: the fast default of TPUs would change codes. It costs nothing in
bfloat16, which has no more to give.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from aromni_jax.errors import UserError

GROUPS = 32  # of every GroupNorm
_EPSILON = 1e-6
_PIXELS_PER_BATCH = 2**21  # eight pictures of 512x512: a gigabyte per activation at full size, float32
_LARGEST_BATCH = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Shape of the network; the defaults are the published one. Names are those of `vqgan.yaml`.

    Attributes:
      ch, ch_mult: channels of level i are ch * ch_mult[i]; each level but the last halves the picture.
      num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
      attn_resolutions: pixels per side at which a level's blocks are followed by attention.
      z_channels: of the encoder's output and the decoder's input.
      resolution: pixels per side of a picture. in_channels: 1 (grey) or 3 (RGB), in and out.
      n_embed, embed_dim: size of the codebook.
      has_decoder: False where a checkpoint holds the encoder only.

    Raises UserError: numbers that make no network.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    z_channels: int = 256
    resolution: int = 512
    in_channels: int = 3
    n_embed: int = 8192
    embed_dim: int = 256
    has_decoder: bool = True

    architecture: ClassVar[str] = "vqgan"
    truncates: ClassVar[bool] = True  # bytes of a decoded picture, as the reference does (SPEC 7.3)

    def __post_init__(self) -> None:
        for name in ("ch", "num_res_blocks", "z_channels", "resolution", "n_embed", "embed_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; wanted: 1 or more")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise UserError(f"ch_mult is {list(self.ch_mult)}; wanted: one number of 1 or more per level")
        if self.ch % GROUPS:
            raise UserError(f"ch is {self.ch}; wanted: a multiple of {GROUPS}, the groups of every norm")
        if self.resolution % self.shrink:
            raise UserError(
                f"resolution {self.resolution} does not halve {len(self.ch_mult) - 1} times, as ch_mult has it"
            )
        if self.in_channels not in (1, 3):
            raise UserError(f"in_channels is {self.in_channels}; wanted: 1 (grey) or 3 (RGB)")

    @property
    def shrink(self) -> int:
        """Pixels per side of the square that one token stands for."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def height(self) -> int:
        """Pixels of a picture."""
        return self.resolution

    @property
    def width(self) -> int:
        """Pixels of a picture."""
        return self.resolution

    @property
    def channels(self) -> int:
        """Of a picture."""
        return self.in_channels

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.resolution // self.shrink, self.resolution // self.shrink

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return self.n_embed

    @property
    def embed(self) -> int:
        """Width of the codebook."""
        return self.embed_dim

    @property
    def largest_batch(self) -> int:
        """Pictures that one device takes at once."""
        return min(_LARGEST_BATCH, max(1, _PIXELS_PER_BATCH // self.resolution**2))

    def build(self, rngs: nnx.Rngs) -> VQGAN:
        """The network with fresh parameters."""
        return VQGAN(self, rngs=rngs)


class VQGAN(nnx.Module):
    """Encoder and decoder without the codebook. Fully convolutional: pictures may have any size that halves well."""

    def __init__(self, config: VQGANConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.quant_conv = _conv(config.z_channels, config.embed_dim, 1, rngs)
        self.post_quant_conv = _conv(config.embed_dim, config.z_channels, 1, rngs)
        self.decoder = Decoder(config, rngs=rngs) if config.has_decoder else None

    def encode(self, image_bhwc: jax.Array) -> jax.Array:
        """Floats [b, h, w, c] in [-1, 1] -> [b, rows, columns, embed_dim], to be quantised."""
        return self.quant_conv(self.encoder(image_bhwc))

    def decode(self, z: jax.Array) -> jax.Array:
        """[b, rows, columns, embed_dim] -> [b, h, w, c], in or near [-1, 1]; needs the decoder."""
        assert self.decoder is not None
        return self.decoder(self.post_quant_conv(z))

    def pictures(self, z: jax.Array) -> jax.Array:
        """As `decode`, cut to [-1, 1]."""
        return jnp.clip(self.decode(z), -1, 1)


class Encoder(nnx.Module):
    """Pictures -> [b, rows, columns, z_channels]."""

    def __init__(self, config: VQGANConfig, *, rngs: nnx.Rngs):
        c, levels = config, len(config.ch_mult)
        widths = [c.ch * multiple for multiple in (1, *c.ch_mult)]
        self.conv_in = _conv(c.in_channels, c.ch, 3, rngs)
        self.down = nnx.List(
            [
                Level(
                    *widths[level : level + 2],
                    blocks=c.num_res_blocks,
                    attention=c.resolution // 2**level in c.attn_resolutions,
                    downsample=level < levels - 1,
                    rngs=rngs,
                )
                for level in range(levels)
            ]
        )
        self.mid = Middle(widths[-1], rngs=rngs)
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = _conv(widths[-1], c.z_channels, 3, rngs)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        x = self.conv_in(x_bhwc)
        for level in self.down:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
    """[b, rows, columns, z_channels] -> pictures. `up` is numbered as the encoder's levels are: the last runs first."""

    def __init__(self, config: VQGANConfig, *, rngs: nnx.Rngs):
        c, levels = config, len(config.ch_mult)
        widths = [c.ch * multiple for multiple in (*c.ch_mult, c.ch_mult[-1])]
        self.conv_in = _conv(c.z_channels, widths[-1], 3, rngs)
        self.mid = Middle(widths[-1], rngs=rngs)
        self.up = nnx.List(
            [
                Level(
                    widths[level + 1],
                    widths[level],
                    blocks=c.num_res_blocks + 1,
                    attention=c.resolution // 2**level in c.attn_resolutions,
                    upsample=level > 0,
                    rngs=rngs,
                )
                for level in range(levels)
            ]
        )
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = _conv(widths[0], c.in_channels, 3, rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Level(nnx.Module):
    """Residual blocks at one size, each followed by attention or none, then a change of size or none."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        blocks: int,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
        rngs: nnx.Rngs,
    ):
        self.block = nnx.List([ResBlock(outputs if i else inputs, outputs, rngs=rngs) for i in range(blocks)])
        self.attn = nnx.List([AttnBlock(outputs, rngs=rngs) for _ in range(blocks if attention else 0)])
        self.downsample = Downsample(outputs, rngs=rngs) if downsample else None
        self.upsample = Upsample(outputs, rngs=rngs) if upsample else None

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        x = x_bhwc
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class Middle(nnx.Module):
    """What stands between the levels and the codes, on either side."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.block_1 = ResBlock(channels, channels, rngs=rngs)
        self.attn_1 = AttnBlock(channels, rngs=rngs)
        self.block_2 = ResBlock(channels, channels, rngs=rngs)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        return self.block_2(self.attn_1(self.block_1(x_bhwc)))


class ResBlock(nnx.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 convolution of x where the width changes."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(inputs)
        self.conv1 = _conv(inputs, outputs, 3, rngs)
        self.norm2 = GroupNorm(outputs)
        self.conv2 = _conv(outputs, outputs, 3, rngs)
        self.nin_shortcut = _conv(inputs, outputs, 1, rngs) if inputs != outputs else None

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        hidden = self.conv1(jax.nn.silu(self.norm1(x_bhwc)))
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        return hidden + (x_bhwc if self.nin_shortcut is None else self.nin_shortcut(x_bhwc))


class AttnBlock(nnx.Module):
    """x + one head of attention over all places; logits and softmax in float32."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels)
        self.q, self.k, self.v, self.proj_out = (_conv(channels, channels, 1, rngs) for _ in range(4))

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        batch, height, width, channels = x_bhwc.shape
        hidden = self.norm(x_bhwc)
        q_bnc, k_bnc, v_bnc = (project(hidden).reshape(batch, -1, channels) for project in (self.q, self.k, self.v))
        logits_bnm = jnp.einsum("bnc,bmc->bnm", q_bnc, k_bnc, precision="highest", preferred_element_type=jnp.float32)
        weights_bnm = jax.nn.softmax(logits_bnm * channels**-0.5, axis=-1).astype(v_bnc.dtype)
        mixed_bnc = jnp.einsum("bnm,bmc->bnc", weights_bnm, v_bnc, precision="highest")
        return x_bhwc + self.proj_out(mixed_bnc.reshape(batch, height, width, channels))


class Downsample(nnx.Module):
    """Halves the size; zeros are added on the right and at the bottom only."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = _conv(channels, channels, 3, rngs, strides=2, padding=((0, 1), (0, 1)))

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        return self.conv(x_bhwc)


class Upsample(nnx.Module):
    """Doubles the size: every pixel four times, then a convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = _conv(channels, channels, 3, rngs)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        return self.conv(x_bhwc.repeat(2, axis=1).repeat(2, axis=2))


class GroupNorm(nnx.Module):
    """Normalises groups of neighbouring channels over all places; statistics in float32 whatever comes in.

    Means are taken row by row and then over rows: short sums, of which less is lost to rounding.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        wide_bhwc = x_bhwc.astype(jnp.float32)
        centred_bhwc = wide_bhwc - _group_means(wide_bhwc)
        gain_b11c = jax.lax.rsqrt(_group_means(centred_bhwc**2) + _EPSILON) * self.scale[None, None, None]
        return (centred_bhwc * gain_b11c + self.bias[None, None, None]).astype(x_bhwc.dtype)


def _group_means(x_bhwc: jax.Array) -> jax.Array:
    """Mean of each group, given to each of its channels: [b, 1, 1, c]."""
    mean_bc = x_bhwc.mean(axis=2).mean(axis=1)
    batch, channels = mean_bc.shape
    mean_bg = mean_bc.reshape(batch, GROUPS, -1).mean(axis=-1)
    return jnp.repeat(mean_bg, channels // GROUPS, axis=1)[:, None, None]


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    rngs: nnx.Rngs,
    *,
    strides: int = 1,
    padding: str | tuple[tuple[int, int], ...] = "SAME",
) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (kernel, kernel), strides=strides, padding=padding, precision="highest", rngs=rngs)
