"""The device mesh."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from aromni_jax.config import MeshConfig
from aromni_jax.errors import UserError

AXES = ("replica", "fsdp", "context", "tensor")


def platform() -> str:
    """Kind of the devices that is traced for: "cpu", "gpu" or "tpu"; those of the mesh of `jax.set_mesh`, if any."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh ("replica", "fsdp", "context", "tensor") with Auto axes over `devices` (default: all of the run).

    On several TPU slices the replica axis (or fsdp, when replica does not divide by the slices) spans the slower
    network between them, and the others stay inside a slice.

    Raises:
      UserError: more than one axis is -1, or the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(config, len(devices))
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1:
        across = _across_slices(sizes, len(slices))
        within = [size // over for size, over in zip(sizes, across, strict=True)]
        array = mesh_utils.create_hybrid_device_mesh(within, across, devices)
    elif devices[0].platform == "tpu":
        array = mesh_utils.create_device_mesh(sizes, devices)
    else:
        array = np.asarray(devices).reshape(sizes)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def alone() -> contextlib.AbstractContextManager:
    """In it, a process of several computes by itself, on a device of its own.

    Inside the `jax.set_mesh` of a run, whatever one process computes waits for all others to compute it, too.
    """
    return jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1]))


def mesh_sizes(config: MeshConfig, count: int) -> tuple[int, ...]:
    """Sizes of the axes for `count` devices, with -1 filled in; errors as `make_mesh`."""
    wanted = dataclasses.asdict(config)
    sizes = [wanted[axis] for axis in AXES]
    described = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh {described}: sizes are positive, and at most one is -1")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
    if math.prod(sizes) != count:
        raise UserError(f"mesh {described}: does not fit {count} devices; the sizes must multiply to {count}")
    return tuple(sizes)


def _across_slices(sizes: Sequence[int], slices: int) -> list[int]:
    for axis in ("replica", "fsdp"):
        place = AXES.index(axis)
        if sizes[place] % slices == 0:
            return [slices if index == place else 1 for index in range(len(sizes))]
    raise UserError(f"mesh: {slices} slices need mesh.replica or mesh.fsdp to be a multiple of {slices}")
