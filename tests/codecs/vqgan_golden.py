"""The reference's small VQGAN (golden set G5) as files of every kind, and a smaller one of random weights."""

import functools
import json
import pathlib

import numpy as np
import safetensors.numpy

from aromni_jax.codecs import folder, vq, vqgan_weights
from aromni_jax.codecs.vqgan import VQGANConfig

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "golden" / "g5_image_codec"
TINY = VQGANConfig(
    ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), z_channels=6, resolution=16, n_embed=32, embed_dim=4
)


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """One of the npz files."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def published_weights() -> dict[str, np.ndarray]:
    """The reference's state_dict."""
    shapes = json.loads((FOLDER / "weights.json").read_text())
    whole = np.ascontiguousarray(arrays("weights")["planes"].T).view("<f4").ravel()
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])[:-1]
    parts = np.split(whole, ends)
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def write_golden(folder: pathlib.Path) -> pathlib.Path:
    """A published folder with the reference's model."""
    (folder / "vqgan.yaml").write_bytes((FOLDER / "vqgan.yaml").read_bytes())
    safetensors.numpy.save_file(published_weights(), folder / "model.safetensors")
    return folder


def published_keys() -> dict[str, tuple[int, ...]]:
    """Name -> shape in the published full-size checkpoint."""
    lines = (line.split("\t") for line in (FOLDER / "published_keys.txt").read_text().splitlines())
    return {name: tuple(json.loads(shape)) for name, shape in lines}


def random_params(config: VQGANConfig, seed: int = 0) -> vq.Params:
    """Parameters of which none has its neutral value, so that a forgotten one shows."""
    rng = np.random.default_rng(seed)
    flat = {}
    for row in vqgan_weights.table(config):
        value = rng.normal(0, 1 if row.path == "codebook" else 0.1, row.shape)
        if len(row.shape) == 4:
            value *= 10 / np.sqrt(np.prod(row.shape[1:]))
        elif row.path.endswith("scale"):
            value += 1
        flat[row.path] = row.to_ours(value.astype(np.float32))
    return folder.nest(flat)


def pictures(count: int, config: VQGANConfig, seed: int = 0) -> np.ndarray:
    """uint8 [count, h, w, c], smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, config.channels))
    smooth = np.kron(coarse, np.ones((1, config.height // 4, config.width // 4, 1)))
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)
