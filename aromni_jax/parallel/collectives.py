"""What devices exchange of a weight that is split over them: the whole of it for a product, a part of its gradient.

Left to itself the TPU compiler sums a gradient whole on every device (an all-reduce) and then drops all but one part:
twice the traffic, and the whole sum in memory. Written as a reduce-scatter over one axis of a mesh that covers several
axes of the machine it does the same, and on a v5p it brings weights together by an all-reduce of parts among zeros;
in two steps it does neither.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from aromni_jax.parallel.mesh import platform
from aromni_jax.parallel.sharding import DEFAULT_RULES, shard

_ROW_AXES = ("replica", "fsdp", "context")  # what batches are split over


def sum_over_rows(
    function: Callable[..., jax.Array],
    *arrays: jax.Array,
    names: Sequence[str] = (),
    axes: tuple[str, ...],
    dtype: DTypeLike,
) -> jax.Array:
    """`function(*arrays)`, an array that is a sum over rows and positions, in the function's dtype.

    Args:
      function: its results for parts of the rows add up to that for all of them.
      arrays: split as batches are.
      names: of each array, a letter per axis: "b" rows, "s" positions; default: these are its first two.
      axes: logical names of the result's axes; along the one that is split over "fsdp" every device gets its part.
      dtype: in which the sums of several devices are sent and added; float32 on CPUs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    result = jax.eval_shape(function, *arrays)
    count = 1 if mesh.empty else mesh.shape["fsdp"]
    parts = tuple(_split(of) for of in names or ["bs"] * len(arrays))
    if count == 1 or any(_left_over(array.shape, part, mesh) for array, part in zip(arrays, parts, strict=True)):
        return function(*arrays)
    spec = DEFAULT_RULES.spec(*axes, shape=result.shape, mesh=mesh)
    if "fsdp" not in spec:
        return function(*arrays)
    place = spec.index("fsdp")
    # XLA ends the process when it is to add bfloat16 between CPUs.
    sent = jnp.float32 if platform() == "cpu" else dtype

    def own_part(*arrays: jax.Array) -> jax.Array:
        part = function(*arrays).astype(sent)
        for groups in _groups(count):
            part = jax.lax.psum_scatter(part, "fsdp", scatter_dimension=place, axis_index_groups=groups, tiled=True)
        return jax.lax.psum(part, ("replica", "context")).astype(result.dtype)

    out = P(*("fsdp" if axis == place else None for axis in range(result.ndim)))
    return jax.shard_map(own_part, in_specs=parts, out_specs=out, axis_names=set(_ROW_AXES), check_vma=False)(*arrays)


def whole(weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The weight brought together along the axis that is split over "fsdp", on every device; not for differentiation.

    Args:
      axes: logical names of its axes; what they split over other axes of the mesh remains split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weight
    spec = DEFAULT_RULES.spec(*axes, shape=weight.shape, mesh=mesh)
    if mesh.shape["fsdp"] == 1 or "fsdp" not in spec:
        return shard(weight, *(None if axis == "embed" else axis for axis in axes))
    place = spec.index("fsdp")
    kept = P(*(None if axis == place else part for axis, part in enumerate(spec)))
    join = functools.partial(joined, name="fsdp", axis=place)
    return jax.shard_map(join, in_specs=spec, out_specs=kept, check_vma=False)(weight)


def joined(part: jax.Array, name: str, axis: int) -> jax.Array:
    """Inside `jax.shard_map`: the parts of all devices along mesh axis `name`, joined along `axis`."""
    for groups in reversed(_groups(jax.lax.axis_size(name))):
        part = jax.lax.all_gather(part, name, axis=axis, axis_index_groups=groups, tiled=True)
    return part


def _split(names: str) -> P:
    """How an array with axes of these names is split."""
    return DEFAULT_RULES.spec(*({"b": "batch", "s": "seq"}.get(name) for name in names))


def _left_over(shape: tuple[int, ...], spec: P, mesh: jax.sharding.AbstractMesh) -> bool:
    """Whether rows or positions do not divide among the devices."""
    parts = [(part,) if isinstance(part, str) else part or () for part in spec]
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
