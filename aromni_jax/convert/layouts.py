"""One layer of a parameter in our layout <-> the tensor of a PyTorch checkpoint (SPEC 3.4, 3.5).

Three layouts, all derived from the same rows of `model.parameter_table`:

    hf            transformers >= 4.43: rows of q and k in rotate-half order, QK-norm vectors [heads, head_dim]
    hf-reference  AR-Omni, Anole: rows in interleaved pairs, one QK-norm vector [head_dim] for all heads
    meta          as hf-reference under Meta's names; every model-parallel rank has a QK-norm vector for its own heads
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from aromni_jax.config import LoraConfig, ModelConfig
from aromni_jax.errors import UserError
from aromni_jax.model import ADAPTER, ParamSpec, parameter_table

Layout = Literal["hf", "hf-reference", "meta"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_TILE = 16  # rows per step of a transposition: they stay in the cache while their columns are written
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Piece:
    """One layer of one parameter, or a whole parameter that is in no layer.

    Attributes:
      path: of the parameter in the table. layer: its number, or None.
      spec: of the parameter without the layers axis.
    """

    path: str
    layer: int | None
    spec: ParamSpec

    def name(self, layout: Layout) -> str:
        """The tensor's name in a checkpoint."""
        external = self.spec.external
        assert external is not None, f"{self.path} is for training only"
        return (external.meta if layout == "meta" else external.hf).format(self.layer)

    @property
    def label(self) -> str:
        """For messages: "layers/ffn/up[3]"."""
        return self.path if self.layer is None else f"{self.path}[{self.layer}]"


def pieces(config: ModelConfig, *, training_only: bool = False) -> list[Piece]:
    """Every piece of a model in the order of its use: embedding, layer by layer, norm, head.

    `training_only` asks for the others: what no PyTorch model has (the perceptual projection).
    """
    table = {p: s for p, s in parameter_table(config).items() if (s.external is None) == training_only}
    layered = {
        path: dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])
        for path, spec in table.items()
        if spec.axes[0] == "layers"
    }
    ordered = list(table)
    found: list[Piece] = []
    for path in ordered:
        if path not in layered:
            found.append(Piece(path, None, table[path]))
        elif path == next(iter(layered)):
            found += [Piece(p, layer, s) for layer in range(config.layers) for p, s in layered.items()]
    return found


def adapter_pieces(config: ModelConfig, lora: LoraConfig) -> list[Piece]:
    """Every piece of the adapters that a model can be given."""
    return [piece for piece in pieces(dataclasses.replace(config, lora=lora)) if ADAPTER in piece.path]


def external_shape(spec: ParamSpec, layout: Layout, ranks: int = 1) -> tuple[int, ...]:
    """Shape of the tensor of one layer; for Meta, of all its ranks joined."""
    external = spec.external
    assert external is not None
    if external.inputs:
        into, out = spec.shape[: external.inputs], spec.shape[external.inputs :]
        return math.prod(out), math.prod(into)
    if external.heads:
        return (external.heads, spec.shape[-1]) if layout == "hf" else (ranks * spec.shape[-1],)
    return spec.shape


def to_external(array: np.ndarray, spec: ParamSpec, layout: Layout, ranks: int = 1, where: str = "") -> np.ndarray:
    """One layer of a parameter as the tensor of a checkpoint, C-contiguous, the bits unchanged.

    Args:
      array: in our layout, the shape of `spec` (without the layers axis).
      ranks: of Meta's model parallelism; the result is of all ranks joined.
      where: for the message.

    Raises:
      UserError: the heads differ in a QK-norm vector that they share in this layout.
    """
    external = spec.external
    assert external is not None
    if external.inputs:
        tensor = transposed(array.reshape(math.prod(spec.shape[: external.inputs]), -1))
        if external.rotary and layout != "hf":
            tensor = _interleave(tensor.reshape(-1, spec.shape[-1], tensor.shape[-1])).reshape(tensor.shape)
        return tensor
    if external.heads:
        vectors = array if layout == "hf" else _interleave(array[..., None])[..., 0]
        count = external.heads if layout == "hf" else ranks
        regrouped = _regrouped(vectors, count)
        if regrouped is None:
            raise UserError(
                f"{where}: {spec.shape[0]} groups of heads have QK-norm vectors of their own, {layout} holds {count}"
                + ("; convert to hf or meta" if layout == "hf-reference" else "")
            )
        return regrouped if layout == "hf" else regrouped.reshape(-1)
    return np.ascontiguousarray(array)


def from_external(tensor: np.ndarray, spec: ParamSpec, layout: Layout, ranks: int = 1, where: str = "") -> np.ndarray:
    """Inverse of `to_external`; the tensor has the shape of `external_shape`.

    Raises:
      UserError: heads that share their QK-norm vectors by our config have different ones.
    """
    external = spec.external
    assert external is not None
    if external.inputs:
        if external.rotary and layout != "hf":
            rows = tensor.reshape(-1, spec.shape[-1], tensor.shape[-1])
            tensor = _halves(rows).reshape(tensor.shape)
        return transposed(tensor).reshape(spec.shape)
    if external.heads:
        vectors = tensor if layout == "hf" else _halves(tensor.reshape(ranks, -1, 1))[..., 0]
        regrouped = _regrouped(vectors, spec.shape[0])
        if regrouped is None:
            raise UserError(f"{where}: has QK-norm vectors of more than {spec.shape[0]} groups (model.qk_norm_groups)")
        return regrouped
    return tensor


def _regrouped(vectors_ge: np.ndarray, count: int) -> np.ndarray | None:
    """Vectors of g groups of heads as those of `count` groups; None if some would have to be two things at once."""
    groups, width = vectors_ge.shape
    if count % groups == 0:
        return np.repeat(vectors_ge, count // groups, axis=0)
    if groups % count:
        return None
    shared = vectors_ge.reshape(count, groups // count, width)
    return None if (_bits(shared) != _bits(shared[:, :1])).any() else np.ascontiguousarray(shared[:, 0])


def transposed(x: np.ndarray) -> np.ndarray:
    """A matrix [a, b] as a contiguous [b, a], tile by tile: several times faster than in one go."""
    out = np.empty(x.shape[::-1], x.dtype)
    for start in range(0, x.shape[0], _TILE):
        out[:, start : start + _TILE] = x[start : start + _TILE].T
    return out


def ahead(jobs: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """Results of `jobs` in order; while one is used, the next is made in another thread."""
    coming: Future[_T] | None = None
    with ThreadPoolExecutor(1) as pool:
        for job in jobs:
            following = pool.submit(job)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def _halves(x_hej: np.ndarray) -> np.ndarray:
    """Pairs (2i, 2i + 1) of axis 1 -> all firsts, then all seconds."""
    h, e, j = x_hej.shape
    return np.ascontiguousarray(x_hej.reshape(h, e // 2, 2, j).swapaxes(1, 2)).reshape(h, e, j)


def _interleave(x_hej: np.ndarray) -> np.ndarray:
    """Inverse of `_halves`."""
    h, e, j = x_hej.shape
    return np.ascontiguousarray(x_hej.reshape(h, 2, e // 2, j).swapaxes(1, 2)).reshape(h, e, j)


def least_groups(vectors_ge: np.ndarray) -> int:
    """The least number of groups of heads that share their vectors."""
    return next(
        n for n in range(1, len(vectors_ge) + 1) if len(vectors_ge) % n == 0 and _regrouped(vectors_ge, n) is not None
    )


def _bits(x: np.ndarray) -> Any:
    """For comparisons: NaN equals itself, 0 is not -0."""
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize])
