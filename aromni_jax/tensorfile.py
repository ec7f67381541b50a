"""safetensors files, read and written one tensor at a time.

The library's own writer wants every tensor of a file in memory, and its readers map whole files: with shards of 5 GB
neither stays within a few. The format is small: 8 bytes of header length, a JSON header, the data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from aromni_jax.errors import UserError

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER = 100 * 2**20  # as the library has it: a hostile file must not make us allocate
Shaped = tuple[tuple[int, ...], np.dtype]


class TensorFile:
    """A safetensors file, checked when opened; `tensors` has shape and dtype by name.

    Raises:
      UserError: missing, cut off, or no safetensors file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise UserError(f"{path}: no safetensors file, or cut off in its header; fetch it again")
        try:
            header = json.loads(self._file.read(length))
            header.pop("__metadata__", None)
            entries = {name: _entry(path, name, **at) for name, at in header.items()}
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise UserError(f"{path}: its safetensors header cannot be read ({error!r}); fetch it again") from None
        self.tensors: dict[str, Shaped] = {}
        self._start: dict[str, int] = {}
        for name, (shape, dtype, start, stop) in entries.items():
            if min(shape, default=0) < 0 or start < 0 or stop - start != math.prod(shape) * dtype.itemsize:
                raise UserError(f"{path}: tensor {name} of shape {shape} does not fit its place; fetch the file again")
            if 8 + length + stop > size:
                raise UserError(f"{path}: cut off at {size:,} bytes, in tensor {name}; fetch it again")
            self.tensors[name], self._start[name] = (shape, dtype), 8 + length + start

    def read(self, name: str) -> np.ndarray:
        """One tensor, copied into memory of its own."""
        shape, dtype = self.tensors[name]
        array = np.empty(shape, dtype)
        view, at = array.reshape(-1).view(np.uint8).data, self._start[name]
        while view:
            count = os.preadv(self._file.fileno(), [view], at)  # not seek and read: threads may share the file
            if not count:
                raise UserError(f"{self.path}: was cut off while it was read, in tensor {name}")
            view, at = view[count:], at + count
        return array

    def close(self) -> None:
        """No reading after this."""
        self._file.close()


def _entry(
    path: pathlib.Path, name: str, dtype: str, shape: list[int], data_offsets: list[int]
) -> tuple[tuple[int, ...], np.dtype, int, int]:
    if dtype not in _DTYPES:
        raise UserError(f"{path}: tensor {name} is of type {dtype}, which is not supported here")
    start, stop = data_offsets
    return tuple(map(int, shape)), _DTYPES[dtype], int(start), int(stop)


class TensorWriter:
    """Writes one safetensors file; every tensor of `planned`, in that order.

    Attributes:
      sha256: of the file, once it is closed.
    """

    def __init__(self, path: pathlib.Path, planned: Mapping[str, Shaped], metadata: Mapping[str, str]) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        place = 0
        for name, (shape, dtype) in planned.items():
            size = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [place, place + size]}
            place += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
        self._left = list(planned.items())
        self._hash = hashlib.sha256()
        self._file = path.open("wb", buffering=0)
        self._write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, array: np.ndarray) -> None:
        """The next planned tensor."""
        wanted, (shape, dtype) = self._left.pop(0)
        assert (wanted, shape, dtype) == (name, array.shape, array.dtype), f"{name} comes before {wanted}"
        self._write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    @property
    def sha256(self) -> str:
        """Of what has been written."""
        return self._hash.hexdigest()

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        assert error or not self._left, f"{self._left[0][0]} was planned, but not written"
