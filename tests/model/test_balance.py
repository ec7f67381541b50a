"""Queries dealt over devices: the right ones, back in order, and as much work for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from aromni_jax.config import MeshConfig
from aromni_jax.model.balance import collect, deal, dealt_positions
from aromni_jax.parallel import make_mesh


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_dealt_and_collected(devices):
    length = 6 * devices
    mesh = make_mesh(MeshConfig(fsdp=1, context=devices), jax.devices()[:devices])
    split = functools.partial(jax.shard_map, mesh=mesh, in_specs=P(None, "context"), out_specs=P(None, "context"))
    x = jnp.arange(2 * length).reshape(2, length)
    dealt = jax.jit(split(lambda x: deal(x, 1)))(x)
    np.testing.assert_array_equal(dealt, np.asarray(x)[:, dealt_positions(length, devices)])
    np.testing.assert_array_equal(jax.jit(split(lambda x: collect(x, 1)))(dealt), x)


def test_every_device_has_as_much_to_do():
    keys_seen = dealt_positions(64, 4).reshape(4, -1) + 1
    assert len(set(keys_seen.sum(axis=1))) == 1
