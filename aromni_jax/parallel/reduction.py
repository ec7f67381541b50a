"""Sums over the rows of a batch, as the gradient of a weight is, in which every device ends with its own part.

Left to itself the TPU compiler sums such a gradient whole on every device (an all-reduce) and then drops all but one
part: twice the traffic, and the whole sum in memory. Written as a reduce-scatter over one axis of a mesh that covers
several axes of the machine it does the same; in two steps it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from aromni_jax.parallel.sharding import DEFAULT_RULES

_ROW_AXES = ("replica", "fsdp", "context")  # what batches are split over


def sum_over_rows(
    function: Callable[..., jax.Array], *arrays_bs: jax.Array, axes: tuple[str, str], dtype: DTypeLike
) -> jax.Array:
    """`function(*arrays_bs)`, a [m, n] array that is a sum over rows and positions, in the function's dtype.

    Args:
      function: its results for parts of the rows add up to that for all of them.
      arrays_bs: [b, s, ...], split as batches are.
      axes: logical names of the result's two axes; along the one that is split over "fsdp" every device gets its part.
      dtype: in which the sums of several devices are sent and added; the function's on CPUs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    result = jax.eval_shape(function, *arrays_bs)
    count = 1 if mesh.empty else mesh.shape["fsdp"]
    rows = P(*DEFAULT_RULES.spec("batch", "seq")) if not mesh.empty else P()
    if count == 1 or any(_left_over(array.shape, rows, mesh) for array in arrays_bs):
        return function(*arrays_bs)
    spec = DEFAULT_RULES.spec(*axes, shape=result.shape, mesh=mesh)
    if "fsdp" not in spec:
        return function(*arrays_bs)
    place = spec.index("fsdp")
    # XLA ends the process when it is to add bfloat16 between CPUs.
    sent = result.dtype if mesh.abstract_device.platform == "cpu" else dtype

    def own_part(*arrays_bs: jax.Array) -> jax.Array:
        part = function(*arrays_bs).astype(sent)
        for groups in _groups(count):
            part = jax.lax.psum_scatter(part, "fsdp", scatter_dimension=place, axis_index_groups=groups, tiled=True)
        return jax.lax.psum(part, ("replica", "context")).astype(result.dtype)

    out = P(*("fsdp" if axis == place else None for axis in range(2)))
    return jax.shard_map(
        own_part, in_specs=(rows,) * len(arrays_bs), out_specs=out, axis_names=set(_ROW_AXES), check_vma=False
    )(*arrays_bs)


def _left_over(shape: tuple[int, ...], rows: P, mesh: jax.sharding.AbstractMesh) -> bool:
    """Whether rows or positions do not divide among the devices."""
    parts = [(part,) if isinstance(part, str) else part or () for part in rows]
    return any(size % math.prod(mesh.shape[name] for name in part) for size, part in zip(shape, parts, strict=False))


def _groups(count: int) -> list[list[list[int]] | None]:
    """Of the devices of an axis, those that exchange in each step; after the last, device i has part i of `count`."""
    inner = next(size for size in range(math.isqrt(count), 0, -1) if count % size == 0)
    outer = count // inner
    if inner == 1:
        return [None]
    strided = [[far * inner + near for far in range(outer)] for near in range(inner)]
    together = [[far * inner + near for near in range(inner)] for far in range(outer)]
    return [strided, together]
