"""A folder of published WavTokenizer files: one description (yaml, or json) and one file of weights.

*.yaml                   as published; or config.json, the same object
*.ckpt                   as published (a PyTorch Lightning checkpoint); or model.safetensors, the same names
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import yaml

from aromni_jax.codecs import folder as store
from aromni_jax.codecs import vq
from aromni_jax.codecs.torch_files import read_state
from aromni_jax.codecs.wavtokenizer import WavTokenizerConfig
from aromni_jax.codecs.wavtokenizer_weights import convert
from aromni_jax.errors import UserError

_JSON = "config.json"  # says all that a yaml file beside it says, and may say more


@dataclasses.dataclass(frozen=True)
class Published:
    """The two files of a folder."""

    description: Path
    weights: Path


def find(path: str | os.PathLike) -> Published | None:
    """The files in a folder, or in `speech` inside of it; None when there is no description, or a codec folder of ours.

    Raises:
      UserError: a description without weights, or a choice of either.
    """
    folders = (Path(path) / "speech", Path(path))
    if any((folder / store.CARD).is_file() for folder in folders):
        return None
    for folder in folders:
        descriptions = [folder / _JSON] if (folder / _JSON).is_file() else _with_suffix(folder, ".yaml", ".yml")
        if descriptions:
            weights = _with_suffix(folder, ".ckpt", ".safetensors")
            return Published(
                _only(descriptions, folder, "yaml description"), _only(weights, folder, ".ckpt or .safetensors file")
            )
    return None


def read(published: Published) -> tuple[dict[str, Any], vq.Params]:
    """-> config as JSON types, and parameters.

    Raises:
      UserError: unreadable files, another kind of model, or weights that do not fit the config.
    """
    file = published.description
    try:
        text = file.read_text(encoding="utf-8")
        description = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(description, dict):
            raise UserError("not a WavTokenizer config: no names in it")
        config = WavTokenizerConfig.from_published(description)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {file} ({' '.join(str(error).split())}); fetch it again") from error
    params = convert(read_state(published.weights), config, published.weights)
    return {**dataclasses.asdict(config), "strides": list(config.strides)}, params


def _with_suffix(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in suffixes) if folder.is_dir() else []


def _only(files: list[Path], folder: Path, what: str) -> Path:
    if len(files) != 1:
        names = f" ({', '.join(file.name for file in files)})" if files else ""
        raise UserError(f"{folder} holds {len(files) or 'no'} {what}s{names}; it must hold just one")
    return files[0]
