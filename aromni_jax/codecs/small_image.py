"""The small image network: pictures of one fixed size, patch by patch; the shipped worlds are coded with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
from flax import nnx

from aromni_jax.codecs import vq
from aromni_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Shape of the network; ValueError if it cannot be.

    Attributes:
      height, width, channels: of the picture; channels 1 (grey) or 3 (RGB).
      patch: pixels per side of the square that one token stands for.
      kernel: pixels per side that the encoder's first layer sees around it.
      context: 3x3 blocks of the encoder at the token grid; each adds one token of view on every side.
      dim: channels of encoder and decoder. depth: 3x3 blocks of the decoder at the token grid.
      fine: channels of the decoder's last layers, at full size.
      codes, embed: size of the codebook.
    """

    height: int
    width: int
    channels: int = 1
    patch: int = 7
    kernel: int = 15
    context: int = 1
    dim: int = 96
    depth: int = 2
    fine: int = 8
    codes: int = 128
    embed: int = 16

    architecture: ClassVar[str] = "small"
    has_decoder: ClassVar[bool] = True
    truncates: ClassVar[bool] = False
    largest_batch: ClassVar[int] = 256

    def __post_init__(self) -> None:
        vq.check_sizes(self, none_of=("context", "depth"))
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"patch={self.patch} does not divide pictures of {self.width}x{self.height} pixels")
        if self.kernel < self.patch:
            raise ValueError(f"kernel={self.kernel} is smaller than patch={self.patch}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.patch, self.width // self.patch

    def build(self, rngs: nnx.Rngs) -> ImageNet:
        """The network with fresh parameters."""
        return ImageNet(self, rngs=rngs)


class ImageNet(nnx.Module):
    """Encoder and decoder without the codebook; pictures are float32 [b, height, width, channels] in [-1, 1]."""

    def __init__(self, config: ImageConfig, *, rngs: nnx.Rngs):
        self.config = config
        c, grown = config, config.kernel - config.patch
        pads = (grown // 2, grown - grown // 2)
        self.patches = nnx.Conv(
            c.channels, c.dim, (c.kernel, c.kernel), strides=c.patch, padding=[pads, pads], rngs=rngs
        )
        self.lift = vq.Residual(c.dim, (1, 1), rngs=rngs)
        self.look = nnx.List([vq.Residual(c.dim, (3, 3), rngs=rngs) for _ in range(c.context)])
        self.embed = nnx.Linear(c.dim, c.embed, rngs=rngs)
        self.start = nnx.Conv(c.embed, c.dim, (3, 3), rngs=rngs)
        self.blocks = nnx.List([vq.Residual(c.dim, (3, 3), rngs=rngs) for _ in range(c.depth)])
        self.grow = nnx.Linear(c.dim, c.patch**2 * c.fine, rngs=rngs)
        self.smooth = nnx.Conv(c.fine, c.fine, (3, 3), rngs=rngs)
        self.pixels = nnx.Conv(c.fine, c.channels, (3, 3), rngs=rngs)

    def encode(self, image_bhwc: jax.Array) -> jax.Array:
        """-> float32 [b, rows, columns, embed], to be quantised."""
        x = self.lift(jax.nn.gelu(self.patches(image_bhwc)))
        for block in self.look:
            x = block(x)
        return self.embed(x)

    def decode(self, z: jax.Array) -> jax.Array:
        """float32 [b, rows, columns, embed] -> logits of the brightness, [b, height, width, channels]."""
        config = self.config
        x = self.start(z)
        for block in self.blocks:
            x = block(x)
        (rows, columns), p = config.grid, config.patch
        x = self.grow(x).reshape(-1, rows, columns, p, p, config.fine)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, config.height, config.width, config.fine)
        return self.pixels(jax.nn.gelu(self.smooth(jax.nn.gelu(x))))

    def pictures(self, z: jax.Array) -> jax.Array:
        """[b, rows, columns, embed] -> [b, height, width, channels] in [-1, 1]."""
        return jax.nn.sigmoid(self.decode(z)) * 2 - 1


def read_card_config(values: Mapping[str, Any], where: Path) -> ImageConfig:
    """The config in `codec.json`; UserError when it has other fields or is none."""
    try:
        return ImageConfig(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}; fetch the codec again") from error
