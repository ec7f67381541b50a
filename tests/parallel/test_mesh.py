"""Mesh sizes, their errors, and the tests' fake devices."""

import jax
import pytest
from jax.sharding import AxisType

from aromni_jax.config import MeshConfig
from aromni_jax.errors import UserError
from aromni_jax.parallel import AXES, make_mesh, mesh_sizes


@pytest.mark.parametrize(
    ("config", "count", "sizes"),
    [
        (MeshConfig(), 8, (1, 8, 1, 1)),
        (MeshConfig(), 1, (1, 1, 1, 1)),
        (MeshConfig(replica=2, tensor=2), 8, (2, 2, 1, 2)),
        (MeshConfig(replica=-1, fsdp=2, context=2), 12, (3, 2, 2, 1)),
        (MeshConfig(fsdp=4, tensor=2), 8, (1, 4, 1, 2)),
    ],
)
def test_sizes(config, count, sizes):
    assert mesh_sizes(config, count) == sizes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(fsdp=3), "fsdp=3.*does not fit 8 devices"),
        (MeshConfig(tensor=3), "tensor=3.*does not fit 8 devices"),
        (MeshConfig(replica=-1), "at most one is -1"),
        (MeshConfig(context=0), "sizes are positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        mesh_sizes(config, 8)


def test_mesh_over_the_fake_devices():
    assert len(jax.devices()) == 8
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    assert mesh.axis_names == AXES
    assert tuple(mesh.shape.values()) == (1, 2, 1, 4)
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert tuple(make_mesh(MeshConfig(), jax.devices()[:1]).shape.values()) == (1, 1, 1, 1)


class _Device:
    """As much of a TPU device as the layout of slices looks at."""

    platform, process_index, core_on_chip, device_kind = "tpu", 0, 0, "TPU v4"

    def __init__(self, number, slice_index):
        self.id, self.slice_index, self.coords = number, slice_index, (number % 4, 0, 0)


def test_slices_are_joined_along_one_axis_only():
    """Inside a slice the mesh keeps fsdp and tensor; replica runs across slices."""
    devices = [_Device(number, number // 4) for number in range(8)]
    mesh = make_mesh(MeshConfig(replica=2, fsdp=4), devices)
    assert mesh.devices.shape == (2, 4, 1, 1)
    for row in mesh.devices.reshape(2, 4):
        assert len({device.slice_index for device in row}) == 1
    wide = make_mesh(MeshConfig(fsdp=8), devices)
    assert [device.slice_index for device in wide.devices.ravel()] == [0] * 4 + [1] * 4
    with pytest.raises(UserError, match="2 slices need"):
        make_mesh(MeshConfig(fsdp=1, tensor=8), devices)
