"""The image codec: pictures of one size <-> grids of codes, by any network of `small_image` or `vqgan`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from PIL import Image

from aromni_jax.buckets import bucket
from aromni_jax.codecs import folder as store
from aromni_jax.codecs import media, small_image, vq, vqgan, vqgan_files
from aromni_jax.errors import UserError

Images = np.ndarray | Image.Image | Sequence[Image.Image]
DTYPES = ("float32", "bfloat16")
_HF_SCALE = 0.0078  # Hugging Face's processor rounds 2/255 to this (SPEC 7.4)


class Network(Protocol):
    """Encoder and decoder without the codebook; z is [b, rows, columns, e]."""

    def encode(self, image_bhwc: jax.Array) -> jax.Array:
        """Pictures in [-1, 1] -> z, to be quantised."""

    def pictures(self, z: jax.Array) -> jax.Array:
        """z -> pictures in [-1, 1]."""


class Config(Protocol):
    """Shape of a network: a frozen dataclass, so that it can be a static argument of a jitted function.

    Attributes:
      architecture: its name in `codec.json`.
      height, width, channels: of a picture; channels 1 (grey) or 3 (RGB).
      grid: rows and columns of tokens. codes, embed: size of the codebook.
      has_decoder: whether `pictures` can be called.
      truncates: whether bytes of a decoded picture are cut to whole numbers in place of rounded.
      largest_batch: pictures that one device takes at once.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def architecture(self) -> str: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def codes(self) -> int: ...
    @property
    def embed(self) -> int: ...
    @property
    def has_decoder(self) -> bool: ...
    @property
    def truncates(self) -> bool: ...
    @property
    def largest_batch(self) -> int: ...
    def build(self, rngs: nnx.Rngs) -> Any:
        """The network, a Flax module that is a `Network`, with fresh parameters."""


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _encode(params: vq.Params, image_bhwc: jax.Array, config: Config, dtype: str) -> jax.Array:
    z = _network(params, config, dtype).encode(image_bhwc.astype(dtype))
    codes = vq.nearest(params["codebook"], z.astype(jnp.float32))
    return codes.reshape(codes.shape[0], -1)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _decode(params: vq.Params, codes_bn: jax.Array, config: Config, dtype: str) -> jax.Array:
    z = params["codebook"][codes_bn].reshape(-1, *config.grid, config.embed)
    return _network(params, config, dtype).pictures(z.astype(dtype)).astype(jnp.float32)


def _network(params: vq.Params, config: Config, dtype: str) -> Network:
    return vq.with_params(config.build, jax.tree.map(lambda x: x.astype(dtype), params["net"]))


@dataclasses.dataclass(frozen=True)
class ImageCodec:
    """Pictures <-> codes in [0, num_codes), row by row from the top left.

    Attributes:
      config: shape of the network, and its kind.
      params: {"net": nested dict of arrays, "codebook": float32 [k, e]}, float32.
      fingerprint: 16 hex digits of config, weights and the two options below.
      dtype: of the network's arithmetic, "float32" or "bfloat16"; codes are always chosen in float32.
      hf_rescale: bytes become floats by Hugging Face's constant 0.0078 in place of the exact 2/255.
      batch_sharding: how batches are spread over devices; see `sharded`.
    """

    config: Config
    params: vq.Params
    fingerprint: str
    dtype: str = "float32"
    hf_rescale: bool = False
    batch_sharding: NamedSharding | None = None

    @classmethod
    def load(cls, path_or_name: str | os.PathLike, *, dtype: str = "float32", hf_rescale: bool = False) -> ImageCodec:
        """From the name of a shipped world or a folder, by what lies in it.

        - `codec.json`: a codec of this project.
        - `vqgan.yaml` and `vqgan.ckpt` (needs PyTorch) or `model.safetensors`: a published VQGAN.
        - `config.json` with `vq_config`: the image part of a Hugging Face Chameleon checkpoint. It cannot decode.

        Raises UserError: none of these, damaged, wrong or missing weights, an unknown dtype.
        """
        if dtype not in DTYPES:
            raise UserError(f"an image codec computes in {' or '.join(DTYPES)}, not in {dtype}")
        config, params, fingerprint = _read(path_or_name)
        if (dtype, hf_rescale) != ("float32", False):  # other codes for the same picture
            fingerprint = store.fingerprint({"dtype": dtype, "hf_rescale": hf_rescale}, fingerprint)
        return cls(config, jax.tree.map(jnp.asarray, params), fingerprint, dtype, hf_rescale)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a codec folder of this project, which `load` reads; the options of `load` are not part of it."""
        flat = store.flatten(self.params)
        with np.errstate(over="ignore"):
            exact = all(np.array_equal(value, value.astype(np.float16)) for value in flat.values())
        weights = store.pack_params(self.params, np.float16 if exact else np.float32)
        card = {"architecture": self.config.architecture}
        if isinstance(self.config, vqgan.VQGANConfig):
            card["fingerprint"] = _fingerprint_of_weights(self.config, self.params)
        store.write(folder, "image", dataclasses.asdict(self.config), weights, card)

    def sharded(self, mesh: Mesh, axes: str | Sequence[str] | None = None) -> ImageCodec:
        """The same codec, with the pictures of a batch spread over `axes` of the mesh (default: all of them).

        The weights are on every device. Codes and pictures come back to the host, so all devices must be this
        process's own: of several processes, each takes its share of the pictures.
        """
        params, batch_sharding = vq.spread(self.params, mesh, axes)
        return dataclasses.replace(self, params=params, batch_sharding=batch_sharding)

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
          images: PIL pictures (any size and mode: turned upright, laid on white, scaled, centre-cropped; SPEC 7.3), or
            an array [B, H, W] or [B, H, W, C] of the codec's size, uint8 or floats in [-1, 1] (clipped).

        Raises UserError: another size, NaN, another dtype, a damaged or too large picture.
        """
        return self._run(_encode, self.prepare(images), np.zeros((0, self.tokens_per_image), np.int32))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int [B, tokens_per_image] -> float32 [B, H, W, C] in [-1, 1].

        Raises UserError: a code out of range, another shape, a codec without a decoder.
        """
        if not self.config.has_decoder:
            raise UserError(
                "this image codec cannot decode: Hugging Face Chameleon checkpoints hold the encoder only; "
                f"load a folder with {vqgan_files.YAML} and {vqgan_files.CHECKPOINT}"
            )
        codes_bn = vq.check_codes(codes, self.num_codes, "image")
        if codes_bn.ndim != 2 or codes_bn.shape[1] != self.tokens_per_image:
            raise UserError(
                f"image codes have shape {list(codes_bn.shape)}; wanted: [pictures, {self.tokens_per_image}]"
            )
        return self._run(_decode, codes_bn, self._empty(np.float32))

    def to_pil(self, codes: np.ndarray) -> list[Image.Image]:
        """int [B, tokens_per_image] -> PIL pictures, grey ("L") or RGB."""
        pixels = (self.decode(codes) + 1) * 127.5
        pixels = (pixels if self.config.truncates else np.round(pixels)).astype(np.uint8)
        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]

    def prepare(self, images: Images) -> np.ndarray:
        """What `encode` takes -> float32 [B, H, W, C] in [-1, 1]."""
        if isinstance(images, Image.Image):
            images = [images]
        if isinstance(images, jax.Array):
            images = np.asarray(images)
        if not isinstance(images, np.ndarray):
            if not isinstance(images, Sequence) or not all(isinstance(image, Image.Image) for image in images):
                raise UserError("pictures must be PIL images or one array of shape [B, H, W] or [B, H, W, C]")
            images = np.stack([self._fit(image) for image in images]) if len(images) else self._empty(np.uint8)
        if images.ndim == 3:
            images = images[..., None]
        config = self.config
        if images.shape[1:] != (config.height, config.width, config.channels):
            raise UserError(
                f"pictures have shape {list(images.shape)}; this codec takes "
                f"[B, {config.height}, {config.width}, {config.channels}]"
            )
        if images.dtype == np.uint8:
            return _float_of_byte(self.hf_rescale)[images]
        if images.dtype.kind != "f":
            raise UserError(f"pictures have type {images.dtype}; give uint8, or floats in [-1, 1]")
        if not np.isfinite(images).all():
            raise UserError("pictures hold NaN or infinite values")
        return np.clip(images, -1, 1).astype(np.float32)

    def _empty(self, dtype: type) -> np.ndarray:
        return np.zeros((0, self.config.height, self.config.width, self.config.channels), dtype)

    def _fit(self, image: Image.Image) -> np.ndarray:
        """uint8 [H, W, C]."""
        config = self.config
        image = media.to_rgb(image).convert("L" if config.channels == 1 else "RGB")
        pixels = np.asarray(media.cover(image, config.width, config.height))
        return pixels.reshape(config.height, config.width, config.channels)

    def _run(self, function: Any, rows: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """Runs a jitted function on batches padded to one of a few sizes; `empty` is the result of no rows."""
        devices = self._devices()
        results = [empty]
        for start in range(0, len(rows), self.config.largest_batch * devices):
            batch = rows[start : start + self.config.largest_batch * devices]
            padded = np.zeros((bucket(-(-len(batch) // devices)) * devices, *rows.shape[1:]), rows.dtype)
            padded[: len(batch)] = batch
            placed = padded if self.batch_sharding is None else jax.device_put(padded, self.batch_sharding)
            results.append(np.asarray(function(self.params, placed, self.config, self.dtype))[: len(batch)])
        return np.concatenate(results)

    def _devices(self) -> int:
        """Over how many devices a batch is spread."""
        if self.batch_sharding is None:
            return 1
        size = self.batch_sharding.mesh.size
        return size // self.batch_sharding.shard_shape((size,))[0]


def _float_of_byte(hf_rescale: bool) -> np.ndarray:
    """float32 [256]: what a byte of a picture becomes, to the last bit as in the reference, or as in Hugging Face's."""
    byte = np.arange(256, dtype=np.float64)
    if hf_rescale:
        return (byte * _HF_SCALE).astype(np.float32) - np.float32(1)
    return (byte / 255 * 2 - 1).astype(np.float32)


def _read(path_or_name: str | os.PathLike) -> tuple[Config, vq.Params, str]:
    """Config, parameters and fingerprint, by what lies in the folder."""
    published = vqgan_files.locate(Path(path_or_name))
    if published is not None and store.locate(path_or_name, "image") is None:
        vqgan_config, params = vqgan_files.read(published)
        return vqgan_config, params, _fingerprint_of_weights(vqgan_config, params)
    others = f", or {vqgan_files.YAML} and its weights, or a Hugging Face Chameleon checkpoint"
    folder = store.find(path_or_name, "image", others)
    card = store.read_card(folder, "image")
    parse = _CONFIG_OF_CARD.get(card.get("architecture", small_image.ImageConfig.architecture))
    if parse is None:
        raise UserError(f"{folder / store.CARD}: unknown architecture {card['architecture']}; update aromni_jax")
    config = parse(card["config"], folder / store.CARD)
    params = store.read_params(folder, card)
    vq.check_params(config.build, params, (config.codes, config.embed), folder)
    if isinstance(config, vqgan.VQGANConfig):
        return config, params, _fingerprint_of_weights(config, params)
    return config, params, store.fingerprint(card["config"], card["sha256"])


_CONFIG_OF_CARD: dict[str, Callable[[Mapping[str, Any], Path], Config]] = {
    small_image.ImageConfig.architecture: small_image.read_card_config,
    vqgan.VQGANConfig.architecture: vqgan_files.read_card_config,
}


def _fingerprint_of_weights(config: vqgan.VQGANConfig, params: vq.Params) -> str:
    """Of a VQGAN: the same from every kind of file, since each of them may hold the same weights."""
    return store.fingerprint(dataclasses.asdict(config), store.digest(params))
