"""From logical axes of arrays to axes of the mesh.

Code names what an axis *is* ("batch", "heads", "embed"); `ShardingRules` says, in one place, over which mesh axes each
of them is split. Parameters are split over `fsdp` along the model dimension and over `tensor` along heads, feed-forward
and vocabulary; activations over `replica` and `fsdp` along the batch and over `context` along the sequence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from aromni_jax.errors import UserError

MeshAxes = tuple[str, ...]


class Declared(Protocol):
    """What `param_shardings` needs to know of a parameter: a row of `model.parameter_table`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def axes(self) -> tuple[str, ...]: ...


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical axis -> mesh axes it is split over, outermost first; () = not split."""

    batch: MeshAxes = ("replica", "fsdp")
    seq: MeshAxes = ("context",)
    layers: MeshAxes = ()
    embed: MeshAxes = ("fsdp",)
    heads: MeshAxes = ("tensor",)
    kv_heads: MeshAxes = ("tensor",)
    head_dim: MeshAxes = ()
    ffn: MeshAxes = ("tensor",)
    vocab: MeshAxes = ("tensor",)
    norm: MeshAxes = ()
    codebook: MeshAxes = ()
    rank: MeshAxes = ()

    def spec(
        self, *axes: str | None, shape: Sequence[int] = (), mesh: Mesh | AbstractMesh | None = None
    ) -> PartitionSpec:
        """PartitionSpec of an array with these logical axes; None = not split.

        With `shape` and `mesh`, mesh axes that do not divide a dimension are dropped, innermost first: two kv heads on
        four tensor devices are replicated, not padded.

        Raises:
          ValueError: an unknown logical axis, or two dimensions of the array would be split over one mesh axis.
        """
        parts = [self._mesh_axes(axis) for axis in axes]
        used = [name for part in parts for name in part]
        if len(used) != len(set(used)):
            split = ", ".join(f"{axis} -> {part}" for axis, part in zip(axes, parts, strict=True) if part)
            raise ValueError(f"sharding rules split one array twice over one mesh axis: {split}")
        if mesh is not None:
            parts = [_dividing(part, size, mesh) for part, size in zip(parts, shape, strict=True)]
        return PartitionSpec(*(part if len(part) > 1 else (part[0] if part else None) for part in parts))

    def _mesh_axes(self, axis: str | None) -> MeshAxes:
        if axis is None:
            return ()
        names = [field.name for field in dataclasses.fields(self)]
        if axis not in names:
            raise ValueError(f"unknown logical axis {axis!r}: the sharding rules know {', '.join(names)}")
        return getattr(self, axis)


DEFAULT_RULES = ShardingRules()


def shard(x: jax.Array, *axes: str | None, rules: ShardingRules = DEFAULT_RULES) -> jax.Array:
    """Constrain an array inside `jit` to the rules' sharding on the mesh of `jax.set_mesh`; no mesh, no constraint.

    Dimensions that a mesh axis does not divide are left whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, rules.spec(*axes, shape=x.shape, mesh=mesh))


def param_shardings(table: Mapping[str, Declared], mesh: Mesh, rules: ShardingRules = DEFAULT_RULES) -> dict[str, Any]:
    """Nested dict of NamedSharding, one per row of the parameter table ("a/b" -> {"a": {"b": ...}})."""
    tree: dict[str, Any] = {}
    for path, declared in table.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = NamedSharding(mesh, rules.spec(*declared.axes, shape=declared.shape, mesh=mesh))
    return tree


def batch_sharding(mesh: Mesh, rules: ShardingRules = DEFAULT_RULES) -> NamedSharding:
    """Of every [b, s] array of a batch: rows over replica and fsdp, positions over context."""
    return NamedSharding(mesh, rules.spec("batch", "seq"))


def own_rows(batches: NamedSharding) -> tuple[int, int]:
    """(i, n): the i-th of n equal parts of every batch's rows is what the devices of this process take.

    Processes whose devices share rows, along "context" or "tensor", have the same i.

    Args:
      batches: `batch_sharding` of the run's mesh.

    Raises:
      UserError: some processes share a part of their rows only.
    """
    taken: dict[int, set[int]] = {}
    sizes = batches.mesh.shape
    count = sizes["replica"] * sizes["fsdp"]
    places: Mapping[Any, Any] = batches.devices_indices_map((count, sizes["context"]))
    for device, (rows, _) in places.items():
        taken.setdefault(device.process_index, set()).update(range(count)[rows])
    parts = sorted(set(map(frozenset, taken.values())), key=min)
    if sum(map(len, parts)) != count or len(set(map(len, parts))) > 1:
        raise UserError(
            "mesh: some processes share a part of their rows only; make mesh.context x mesh.tensor a divisor or a "
            "multiple of the devices of a process"
        )
    return parts.index(frozenset(taken[jax.process_index()])), len(parts)


def _dividing(part: MeshAxes, size: int, mesh: Mesh | AbstractMesh) -> MeshAxes:
    while part and size % math.prod(mesh.shape[name] for name in part):
        part = part[:-1]
    return part
