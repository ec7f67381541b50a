"""Weights brought together, and sums over rows that end in parts: every device with its own, none whole on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, NamedSharding
from jax.sharding import PartitionSpec as P

from aromni_jax.config import MeshConfig
from aromni_jax.model.embedding import embed
from aromni_jax.parallel import batch_sharding, make_mesh, sum_over_rows, whole


def outer(x_bsd, y_bsf):
    return jnp.einsum("bsd,bsf->df", x_bsd, y_bsf)


def arrays(rows=8, width=16):
    keys = jax.random.split(jax.random.key(0))
    return tuple(jax.random.normal(key, (rows, 4, width)) for key in keys)


def compiled(mesh, axes, given, dtype=jnp.float32):
    def total(x_bsd, y_bsf):
        return sum_over_rows(outer, x_bsd, y_bsf, axes=axes, dtype=dtype)

    place = P(*("fsdp" if axis == "embed" else None for axis in axes))
    with jax.set_mesh(mesh):
        out = NamedSharding(mesh, place)
        return jax.jit(total, out_shardings=out).lower(*given).compile()


@pytest.mark.parametrize("axes", [("embed", "ffn"), ("ffn", "embed"), ("vocab", "embed")])
@pytest.mark.parametrize(
    "sizes", [{"fsdp": 8}, {"fsdp": 4, "replica": 2}, {"fsdp": 2, "context": 2, "tensor": 2}, {"fsdp": 1, "replica": 8}]
)
def test_the_sum_in_parts(axes, sizes):
    mesh = make_mesh(MeshConfig(**sizes))
    given = [jax.device_put(x, batch_sharding(mesh)) for x in arrays()]
    program = compiled(mesh, axes, given)
    np.testing.assert_allclose(program(*given), outer(*arrays()), rtol=1e-5, atol=1e-5)
    assert ("reduce-scatter" in program.as_text()) == (sizes["fsdp"] > 1)


def test_sums_are_sent_in_the_dtype_that_was_asked_for_but_on_cpus():
    mesh = make_mesh(MeshConfig(fsdp=8))
    given = [jax.device_put(x, batch_sharding(mesh)) for x in arrays()]
    found = compiled(mesh, ("embed", "ffn"), given, jnp.bfloat16)(*given)
    np.testing.assert_allclose(found, outer(*arrays()), rtol=1e-5, atol=1e-5)
    assert "bf16" not in compiled(mesh, ("embed", "ffn"), given, jnp.bfloat16).as_text()
    # On half precision's own kind of sum: as a TPU would lower it.
    kind = AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    abstract = mesh.abstract_mesh.update(abstract_device=kind)

    def total(x_bsd, y_bsf):
        return sum_over_rows(outer, x_bsd, y_bsf, axes=("embed", "ffn"), dtype=jnp.bfloat16)

    with jax.sharding.use_abstract_mesh(abstract):
        assert "bf16" in str(jax.make_jaxpr(total)(*arrays()))


def test_no_sum_in_half_precision_is_sent_between_cpus():
    """The embedding's gradient is one: XLA ends the process that compiles it."""
    table_vd, tokens_bs = jnp.ones((6, 16), jnp.bfloat16), jnp.arange(8, dtype=jnp.int32)[:, None] % 3
    gradient = jax.grad(lambda table_vd: embed(table_vd, tokens_bs, table_vd.dtype).astype(jnp.float32).sum())
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=4, replica=2))):
        sent = [line for line in str(jax.make_jaxpr(gradient)(table_vd)).splitlines() if "reduce_scatter[" in line]
        assert sent and not any("bf16" in line for line in sent), sent
        found = jax.jit(gradient)(table_vd)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[:, 0], [3, 3, 2, 0, 0, 0])


@pytest.mark.parametrize(("rows", "width"), [(6, 16), (8, 12)])
def test_what_does_not_divide_is_summed_whole(rows, width):
    mesh = make_mesh(MeshConfig(fsdp=8))
    given = arrays(rows, width)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda x, y: sum_over_rows(outer, x, y, axes=("embed", "ffn"), dtype=jnp.float32))(*given)
    np.testing.assert_allclose(found, outer(*given), rtol=1e-5, atol=1e-5)


def test_without_a_mesh():
    given = arrays()
    found = sum_over_rows(outer, *given, axes=("embed", "ffn"), dtype=jnp.bfloat16)
    np.testing.assert_array_equal(found, outer(*given))


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 1, "replica": 8}])
def test_a_weight_brought_together(sizes):
    """In steps along fsdp, and only along it."""
    axes, mesh = ("heads", "head_dim", "embed"), make_mesh(MeshConfig(**sizes))
    weight = jnp.arange(2 * 3 * 16, dtype=jnp.float32).reshape(2, 3, 16)
    own, kept = (NamedSharding(mesh, P("tensor", None, part)) for part in ("fsdp", None))
    with jax.set_mesh(mesh):
        program = jax.jit(lambda weight: whole(weight, axes), out_shardings=kept, in_shardings=own)
        program = program.lower(weight).compile()
    assert program.as_text().count(" all-gather(") == {8: 2, 4: 2, 1: 0}[sizes["fsdp"]]
    found = program(jax.device_put(weight, own))
    np.testing.assert_array_equal(found, weight)
    assert found.sharding.is_equivalent_to(kept, 3)


def test_a_weight_that_does_not_divide_stays_as_it_is():
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=8))):
        np.testing.assert_array_equal(jax.jit(lambda weight: whole(weight, ("embed", "ffn")))(jnp.ones((6, 2))), 1)
