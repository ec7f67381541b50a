"""`.bin`, `.pth` and `.ckpt` files: PyTorch's own format, read and written with PyTorch, tensors and nothing else.

PyTorch comes from the extra `torch` and is imported in here, when such a file is met, and nowhere else in the core.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from aromni_jax.errors import UserError
from aromni_jax.tensorfile import Shaped

_BF16 = np.dtype(ml_dtypes.bfloat16)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            "PyTorch reads and writes .bin and .pth files: pip install 'aromni_jax[torch]', or use safetensors"
        ) from None
    return torch


class TorchFile:
    """A file with a dict of tensors, mapped rather than read; `tensors` has shape and dtype by name.

    Entries that are None are left out (Meta's `rope.freqs`).

    Args:
      inside: name of the entry that holds the dict, if there is one.
      among_others: a training framework's file, which keeps more than tensors: objects of classes that PyTorch does not
        know to be harmless are read as empty placeholders, and whatever is no tensor is left out.

    Raises:
      UserError: missing, damaged, no PyTorch; or, unless `among_others`, it holds anything but tensors: such a file
        could run code when it is unpickled, so that is refused.
    """

    def __init__(self, path: pathlib.Path, inside: str | None = None, *, among_others: bool = False) -> None:
        torch = _torch()
        self.path = path
        try:
            with path.open("rb") as file:
                zipped = file.read(2) == b"PK"
            strange = torch.serialization.get_unsafe_globals_in_checkpoint(path) if among_others and zipped else []
            with torch.serialization.safe_globals([(_Placeholder, name) for name in strange]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except Exception as error:  # PyTorch raises kinds of many libraries
            raise UserError(f"{path}: {_reason(error)}") from None
        if inside is not None and isinstance(content, Mapping) and isinstance(content.get(inside), Mapping):
            content = content[inside]
        if not isinstance(content, Mapping):
            raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
        self._content: dict[str, Any] = {}
        for name, value in content.items():
            if isinstance(value, torch.Tensor):
                self._content[str(name)] = value
            elif value is not None and not among_others:
                raise UserError(
                    f"{path}: entry {name} is a {type(value).__name__}, not a tensor; this is no weight file"
                )
        self.tensors: dict[str, Shaped] = {
            name: (tuple(value.shape), _numpy_dtype(path, name, value)) for name, value in self._content.items()
        }

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        value, (_, dtype) = self._content[name].detach().resolve_neg().contiguous(), self.tensors[name]
        if dtype == _BF16:
            return np.array(value.view(_torch().uint8).numpy()).view(_BF16)
        return np.array(value.numpy())

    def close(self) -> None:
        """No reading after this."""
        self._content = {}


class _Placeholder:
    """Stands for an object of a class that PyTorch does not know to be harmless; nothing of that class is run."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def write_torch(path: pathlib.Path, planned: Mapping[str, Shaped], tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write a dict of tensors, and `rope.freqs` = None, which Meta's loader must find (SPEC 3.5).

    `torch.save` wants everything at once, so what comes goes to a scratch file first, which it then reads page by page:
    the disk needs room for the tensors twice.

    Raises:
      OSError: no room.
    """
    torch = _torch()
    scratch = path.with_name(f".{path.name}.scratch")
    sizes = [int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in planned.values()]
    starts = np.cumsum([0, *(-(-size // 64) * 64 for size in sizes)])
    try:
        with scratch.open("wb") as file:
            _reserve(file.fileno(), int(starts[-1]))
        space = np.memmap(scratch, np.uint8, "r+", shape=(int(starts[-1]),))
        state: dict[str, Any] = {}
        for (name, array), wanted, start, size in zip(tensors, planned, starts, sizes, strict=False):
            assert name == wanted, f"{name} comes before {wanted}"
            place = space[start : start + size]
            place[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            dtype = torch.bfloat16 if array.dtype == _BF16 else torch.from_numpy(np.empty(0, array.dtype)).dtype
            state[name] = torch.from_numpy(place).view(dtype).reshape(array.shape)
        torch.save({**state, "rope.freqs": None}, path)
    finally:
        scratch.unlink(missing_ok=True)


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now: a mapped file that meets a full disk later kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, max(1, size))
    else:
        zeros = bytes(2**20)
        for start in range(0, max(1, size), len(zeros)):
            os.write(descriptor, zeros[: max(1, size) - start])


def _numpy_dtype(path: pathlib.Path, name: str, value: Any) -> np.dtype:
    torch = _torch()
    if value.dtype == torch.bfloat16:
        return _BF16
    try:
        return value.detach().resolve_neg().new_empty(0).numpy().dtype
    except (TypeError, RuntimeError):
        raise UserError(f"{path}: tensor {name} has type {value.dtype}, which is not supported here") from None


def _reason(error: Exception) -> str:
    text = str(error)
    if "weights_only" in text or "Unsupported global" in text or "WeightsUnpickler" in text:
        return "holds anything but tensors, and unpickling it could run code: refused; ask for safetensors"
    return f"PyTorch cannot read it ({(text.strip().splitlines() or [type(error).__name__])[0][:160]}); fetch it again"
