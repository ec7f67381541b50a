"""The gradient of the embedding table: sums over every occurrence of a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.config import MeshConfig
from aromni_jax.model.embedding import embed
from aromni_jax.parallel import make_mesh


def gradient(table_vd, tokens_bs, dx_bsd):
    return jax.vjp(lambda table_vd: embed(table_vd, tokens_bs, jnp.bfloat16), table_vd)[1](dx_bsd)[0]


@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_frequent_token_loses_nothing_in_half_precision(fsdp):
    """Thousands of times the same small gradient; a sum in bfloat16 stands still at 256 times."""
    table_vd = jnp.ones((3, 4))
    tokens_bs = jnp.tile(jnp.array([1, 0, 1, 2, 1]), (2, 800))
    dx_bsd = jnp.full((*tokens_bs.shape, 4), 2.0**-7, jnp.bfloat16)
    mesh = make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:fsdp])
    with jax.set_mesh(mesh):
        found = jax.jit(gradient)(table_vd, tokens_bs, dx_bsd)
    np.testing.assert_array_equal(found[:, 0], np.array([1600, 4800, 1600]) / 128)
