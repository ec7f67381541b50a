"""Published checkpoints as named arrays, read one at a time: safetensors, sharded or not, and PyTorch files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 once this is imported)
import numpy as np
import safetensors

from aromni_jax.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The arrays of one checkpoint.

    Attributes:
      where: the file, or the folder of the files, for error messages.
      shapes: name -> shape.
      read: name -> float32 array; UserError when the file is damaged there.
    """

    where: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]

    def below(self, prefix: str) -> Tensors:
        """Those whose name starts with `prefix`, without it."""
        shapes = {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return Tensors(self.where, shapes, lambda name: self.read(prefix + name))


def open_safetensors(path: Path, prefix: str = "") -> Tensors:
    """A safetensors file, or a folder of them with or without an index; nothing but headers is read yet.

    Args:
      prefix: of a folder with an index, only files that hold names of this prefix are opened.

    Raises UserError: missing or damaged.
    """
    places: dict[str, tuple[Path, Any]] = {}
    for file in _files(path, prefix):
        try:
            handle = safetensors.safe_open(file, framework="np")
            places |= dict.fromkeys(handle.keys(), (file, handle))
        except Exception as error:  # the library raises kinds of its own
            raise UserError(f"cannot read {file} ({error}); fetch the checkpoint again") from error

    def read(name: str) -> np.ndarray:
        file, handle = places[name]
        try:
            return handle.get_tensor(name).astype(np.float32)
        except Exception as error:
            raise UserError(f"cannot read {name} from {file} ({error}); fetch the checkpoint again") from error

    shapes = {name: tuple(handle.get_slice(name).get_shape()) for name, (_, handle) in places.items()}
    return Tensors(path, shapes, read)


def _files(path: Path, prefix: str) -> Iterable[Path]:
    if path.is_file():
        return [path]
    if not (path / INDEX).is_file():
        if (path / SINGLE).is_file():
            return [path / SINGLE]
        raise UserError(f"{path} holds neither {SINGLE} nor {INDEX}; fetch the checkpoint again")
    places = read_json(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{path / INDEX} holds no weight_map of names and files; fetch the checkpoint again")
    files = {file for name, file in places.items() if name.startswith(prefix)}
    if any(Path(file).name != file for file in files):
        raise UserError(f"{path / INDEX} names a file outside of its folder; do not trust this checkpoint")
    return [path / file for file in sorted(files)]


def open_torch(path: Path) -> Tensors:
    """A PyTorch file of tensors, maybe under "state_dict"; no code in it is run (`weights_only`). Needs PyTorch.

    Raises UserError: no PyTorch, missing, damaged, or more in it than tensors and plain values.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch file: pip install 'aromni_jax[torch]', or save it as {SINGLE} with the same names"
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling meets
        reason = str(error).strip().split("\n")[0][:120].rstrip(". ")
        raise UserError(
            f"cannot read {path} as tensors alone ({reason}); if you trust it, save its state_dict by itself"
        ) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; wanted: a state_dict of tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return Tensors(
        path,
        {name: tuple(value.shape) for name, value in tensors.items()},
        lambda name: tensors[name].to(torch.float32).numpy(),
    )


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object; UserError when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); fetch the checkpoint again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object; fetch the checkpoint again")
    return values
