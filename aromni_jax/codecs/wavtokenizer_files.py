"""A folder of published WavTokenizer files: one description (yaml, or json) and one file of weights.

*.yaml                   as published; or config.json, the same object
*.ckpt                   as published (a PyTorch Lightning checkpoint); or model.safetensors, the same names
"""

import dataclasses
import re
from pathlib import Path

import yaml

from aromni_jax.codecs import vq
from aromni_jax.codecs.tensor_files import open_safetensors, open_torch
from aromni_jax.codecs.wavtokenizer import WavTokenizerConfig
from aromni_jax.codecs.wavtokenizer_weights import import_params
from aromni_jax.errors import UserError

_JSON = "config.json"  # says all that a yaml file beside it says, and may say more; json is yaml too


@dataclasses.dataclass(frozen=True)
class Published:
    """The two files of a folder."""

    description: Path
    weights: Path


def locate(path: Path) -> Published | None:
    """The files in a folder `speech` inside of this one, or in this one; None without a description of WavTokenizer.

    Raises:
      UserError: a description without weights, or a choice of either.
    """
    for folder in (path / "speech", path):
        descriptions = [file for file in _with_suffix(folder, ".yaml", ".yml", ".json") if _describes(file)]
        if folder / _JSON in descriptions:
            descriptions = [folder / _JSON]
        if descriptions:
            weights = _with_suffix(folder, ".ckpt", ".safetensors")
            return Published(_only(descriptions, folder, "description"), _only(weights, folder, "file of weights"))
    return None


def read(published: Published) -> tuple[WavTokenizerConfig, vq.Params]:
    """Config and parameters.

    Raises:
      UserError: unreadable files, another kind of model, or weights that do not fit the config.
    """
    file, weights = published.description, published.weights
    try:
        config = WavTokenizerConfig.from_published(yaml.safe_load(file.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {file} ({' '.join(str(error).split())[:120]}); fetch it again") from error
    tensors = open_torch(weights) if weights.suffix == ".ckpt" else open_safetensors(weights)
    return config, import_params(tensors, config)


def _describes(file: Path) -> bool:
    """Whether the file says how a WavTokenizer hears; language models and image codecs may lie in the same folder."""
    return bool(re.search(r'\bfeature_extractor"?\s*:', file.read_text(encoding="utf-8", errors="replace")))


def _with_suffix(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in suffixes) if folder.is_dir() else []


def _only(files: list[Path], folder: Path, what: str) -> Path:
    if len(files) != 1:
        names = f" ({', '.join(file.name for file in files)})" if files else ""
        raise UserError(f"{folder}: {len(files) or 'no'} {what} of WavTokenizer{names}; wanted: just one")
    return files[0]
