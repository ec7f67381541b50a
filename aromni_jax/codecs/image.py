"""The small image codec: one grey or colour picture of fixed size <-> a grid of codes."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from aromni_jax.codecs import folder as store
from aromni_jax.codecs import vq
from aromni_jax.codecs.media import flatten
from aromni_jax.errors import UserError

_LARGEST_BATCH = 256
Images = np.ndarray | Image.Image | Sequence[Image.Image]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Shape of the codec.

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

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.patch, self.width // self.patch


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


@functools.partial(jax.jit, static_argnames="config")
def _encode(params: vq.Params, image_bhwc: jax.Array, config: ImageConfig) -> jax.Array:
    net = vq.with_params(lambda rngs: ImageNet(config, rngs=rngs), params["net"])
    codes = vq.nearest(params["codebook"], net.encode(image_bhwc))
    return codes.reshape(codes.shape[0], -1)


@functools.partial(jax.jit, static_argnames="config")
def _decode(params: vq.Params, codes_bn: jax.Array, config: ImageConfig) -> jax.Array:
    net = vq.with_params(lambda rngs: ImageNet(config, rngs=rngs), params["net"])
    z = params["codebook"][codes_bn].reshape(-1, *config.grid, config.embed)
    return jax.nn.sigmoid(net.decode(z)) * 2 - 1


@dataclasses.dataclass(frozen=True)
class ImageCodec:
    """Pictures <-> codes in [0, num_codes), row by row from the top left.

    Attributes:
      params: {"net": nested dict of arrays, "codebook": float32 [k, e]}.
      fingerprint: 16 hex digits of config and weights.
    """

    config: ImageConfig
    params: vq.Params
    fingerprint: str

    @classmethod
    def load(cls, path_or_name: str | os.PathLike) -> "ImageCodec":
        """From a codec folder or the name of a shipped world; UserError when there is none or it is damaged."""
        folder = store.find(path_or_name, "image")
        card = store.read_card(folder, "image")
        try:
            config = ImageConfig(**card["config"])
        except TypeError as error:
            raise UserError(f"{folder / store.CARD}: {error}; fetch the codec again") from error
        params = store.read_params(folder, card)
        vq.check_params(lambda rngs: ImageNet(config, rngs=rngs), params, (config.codes, config.embed), folder)
        return cls(config, jax.tree.map(jnp.asarray, params), store.fingerprint(card["config"], card["sha256"]))

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        return self.config.codes

    @property
    def tokens_per_image(self) -> int:
        """Codes per picture."""
        rows, columns = self.config.grid
        return rows * columns

    @property
    def codebook(self) -> np.ndarray:
        """float32 [num_codes, e]: the vectors that the codes stand for."""
        return np.asarray(self.params["codebook"])

    def encode(self, images: Images) -> np.ndarray:
        """Pictures -> int32 [B, tokens_per_image].

        Args:
          images: PIL pictures (any size and mode: scaled, centre-cropped), or an array [B, H, W] or [B, H, W, C] of
            the codec's size, uint8 or floats in [-1, 1] (clipped).

        Raises UserError: another size, NaN, another dtype.
        """
        image_bhwc = self.prepare(images)
        rows = [
            self._whole_batch(_encode, image_bhwc[start : start + _LARGEST_BATCH])
            for start in range(0, len(image_bhwc), _LARGEST_BATCH)
        ]
        return np.concatenate(rows) if rows else np.zeros((0, self.tokens_per_image), np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int [B, tokens_per_image] -> float32 [B, H, W, C] in [-1, 1]; UserError on a code out of range."""
        codes_bn = vq.check_codes(codes, self.num_codes, "image")
        if codes_bn.ndim != 2 or codes_bn.shape[1] != self.tokens_per_image:
            raise UserError(
                f"image codes have shape {list(codes_bn.shape)}; wanted: [pictures, {self.tokens_per_image}]"
            )
        rows = [
            self._whole_batch(_decode, codes_bn[start : start + _LARGEST_BATCH])
            for start in range(0, len(codes_bn), _LARGEST_BATCH)
        ]
        config = self.config
        shape = (0, config.height, config.width, config.channels)
        return np.concatenate(rows) if rows else np.zeros(shape, np.float32)

    def to_pil(self, codes: np.ndarray) -> list[Image.Image]:
        """int [B, tokens_per_image] -> PIL pictures, grey ("L") or RGB."""
        pixels = np.round((self.decode(codes) + 1) * 127.5).astype(np.uint8)
        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]

    def prepare(self, images: Images) -> np.ndarray:
        """What `encode` takes -> float32 [B, H, W, C] in [-1, 1]."""
        if isinstance(images, Image.Image):
            images = [images]
        if not isinstance(images, np.ndarray):
            if not all(isinstance(image, Image.Image) for image in images):
                raise UserError("pictures must be PIL images or one array of shape [B, H, W] or [B, H, W, C]")
            images = np.stack([self._fit(image) for image in images]) if len(images) else self._empty()
        if images.ndim == 3:
            images = images[..., None]
        config = self.config
        if images.shape[1:] != (config.height, config.width, config.channels):
            raise UserError(
                f"pictures have shape {list(images.shape)}; this codec takes "
                f"[B, {config.height}, {config.width}, {config.channels}]"
            )
        if images.dtype == np.uint8:
            return images.astype(np.float32) / 127.5 - 1
        if images.dtype.kind != "f":
            raise UserError(f"pictures have type {images.dtype}; give uint8, or floats in [-1, 1]")
        if not np.isfinite(images).all():
            raise UserError("pictures hold NaN or infinite values")
        return np.clip(images, -1, 1).astype(np.float32)

    def _empty(self) -> np.ndarray:
        return np.zeros((0, self.config.height, self.config.width, self.config.channels), np.uint8)

    def _fit(self, image: Image.Image) -> np.ndarray:
        """Scales so that the picture just covers the codec's size, and cuts the middle (as SPEC 7.3)."""
        config = self.config
        image = flatten(image).convert("L" if config.channels == 1 else "RGB")
        if image.size != (config.width, config.height):
            scale = max(config.width / image.width, config.height / image.height)
            size = (max(config.width, round(image.width * scale)), max(config.height, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.LANCZOS)
            left, top = (image.width - config.width) // 2, (image.height - config.height) // 2
            image = image.crop((left, top, left + config.width, top + config.height))
        return np.asarray(image).reshape(config.height, config.width, config.channels)

    def _whole_batch(self, function: Any, rows: np.ndarray) -> np.ndarray:
        """Runs a jitted function on a batch padded to one of a few sizes."""
        padded = np.zeros((vq.bucket(len(rows)), *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return np.asarray(function(self.params, padded, self.config))[: len(rows)]
