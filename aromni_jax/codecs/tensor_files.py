"""Published checkpoints as named arrays, read one at a time: safetensors, sharded or not, and PyTorch files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from aromni_jax import store
from aromni_jax.errors import UserError
from aromni_jax.tensorfile import TensorFile
from aromni_jax.torchfile import TorchFile

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
    return _tensors(path, [TensorFile(file) for file in _files(path, prefix)])


def open_torch(path: Path) -> Tensors:
    """A PyTorch file of tensors, maybe under "state_dict"; no code in it is run (`weights_only`). Needs PyTorch.

    What Lightning keeps beside the weights is left out.

    Raises UserError: no PyTorch, missing or damaged.
    """
    return _tensors(path, [TorchFile(path, inside="state_dict", among_others=True)])


def _tensors(where: Path, files: Iterable[TensorFile | TorchFile]) -> Tensors:
    places = {name: file for file in files for name in file.tensors}
    shapes = {name: file.tensors[name][0] for name, file in places.items()}
    return Tensors(where, shapes, lambda name: places[name].read(name).astype(np.float32))


def _files(path: Path, prefix: str) -> Iterable[Path]:
    if path.is_file():
        return [path]
    if not (path / INDEX).is_file():
        if (path / SINGLE).is_file():
            return [path / SINGLE]
        raise UserError(f"{path} holds neither {SINGLE} nor {INDEX}; fetch the checkpoint again")
    places = store.read_json(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{path / INDEX} holds no weight_map of names and files; fetch the checkpoint again")
    files = {file for name, file in places.items() if name.startswith(prefix)}
    if any(Path(file).name != file for file in files):
        raise UserError(f"{path / INDEX} names a file outside of its folder; do not trust this checkpoint")
    return [path / file for file in sorted(files)]
