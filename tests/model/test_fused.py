"""The accelerators' attention: the TPU's kernel interpreted on a CPU; what is chosen for which platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.config import MeshConfig
from aromni_jax.model import fused
from aromni_jax.model.plain import Visibility, dense_mask, xla_attend
from aromni_jax.parallel import make_mesh

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 256, 4, 2, 128


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in [(BATCH, LENGTH, HEADS, HEAD_DIM), *[(BATCH, KV_HEADS, LENGTH, HEAD_DIM)] * 2]
    )
    segments_bs = jnp.asarray(np.sort(rng.integers(0, 3, (BATCH, LENGTH))), jnp.int32)
    return (q, k, v), Visibility(jnp.arange(LENGTH), segments_bs, segments_bs)


def values_and_gradients(attend, arrays):
    """Of a sum that weighs every output differently."""
    weights = jnp.cos(jnp.arange(HEAD_DIM))

    def loss(q, k, v):
        mixed = attend(q, k, v)
        return jnp.einsum("bshe,e->", mixed, weights), mixed

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)


@pytest.mark.parametrize(
    "mesh",
    [None, MeshConfig(fsdp=2, context=2, tensor=2), MeshConfig(context=2, tensor=4), MeshConfig(context=8)],
    ids=str,
)
def test_splash_equals_reference(arrays, mesh, monkeypatch):
    """Values and gradients, packed and padded, on one device and with rows, heads and queries over a mesh; the last one
    has more devices than a row has blocks of queries."""
    monkeypatch.setattr(fused, "_QUERIES", 128)
    monkeypatch.setattr(fused, "_KEYS", 128)
    qkv, visibility = arrays
    expected = values_and_gradients(lambda q, k, v: xla_attend(q, k, v, dense_mask(visibility, LENGTH)), qkv)

    def attend(q, k, v):
        return fused.splash_attend(q, k, v, visibility=visibility, interpret=True)

    if mesh is None:
        actual = values_and_gradients(attend, qkv)
    else:
        with jax.set_mesh(make_mesh(mesh)):
            actual = values_and_gradients(attend, qkv)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, expected)


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_splash_with_queries_dealt_over_devices_equals_reference(devices, monkeypatch):
    monkeypatch.setattr(fused, "_QUERIES", 128)
    monkeypatch.setattr(fused, "_KEYS", 256)
    length = 2 * devices * 128
    rng = np.random.default_rng(0)
    shapes = [(1, length, 2, HEAD_DIM), *[(1, 1, length, HEAD_DIM)] * 2]
    qkv = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    segments_bs = jnp.asarray(np.sort(rng.integers(0, 3, (1, length))), jnp.int32)
    visibility = Visibility(jnp.arange(length), segments_bs, segments_bs)
    expected = values_and_gradients(lambda q, k, v: xla_attend(q, k, v, dense_mask(visibility, length)), qkv)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1, context=devices), jax.devices()[:devices])):
        actual = values_and_gradients(
            lambda q, k, v: fused.splash_attend(q, k, v, visibility=visibility, interpret=True), qkv
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, expected)


def lowered_for(platform, arrays, visibility):
    traced = jax.jit(lambda q, k, v: fused.fused_attend(q, k, v, visibility)).trace(*arrays)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_kernel_is_chosen_by_the_platform_that_is_compiled_for(arrays):
    qkv, visibility = arrays
    assert "tpu_custom_call" in lowered_for("tpu", qkv, visibility)
    assert "custom_call" not in lowered_for("cpu", qkv, visibility)


def test_shapes_without_a_kernel_take_the_reference(arrays):
    qkv, _ = arrays
    q, k, v = (array[..., :64] for array in qkv)
    whole = Visibility(jnp.arange(LENGTH), None, None)
    assert "tpu_custom_call" not in lowered_for("tpu", (q, k, v), whole)
    expected = xla_attend(q, k, v, dense_mask(whole, LENGTH))
    np.testing.assert_allclose(fused.fused_attend(q, k, v, whole), expected, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [True, False])
def test_cudnn_equals_reference(arrays, packed):
    """On a GPU, in bfloat16: no further from float32 than twice what the reference is in bfloat16."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")
    (q, k, v), visibility = arrays
    if not packed:
        visibility = Visibility(visibility.query_slots_s, None, None)
    halves = [array.astype(jnp.bfloat16) for array in (q, k, v)]
    assert "cudnn" in lowered_for("cuda", halves, visibility)

    def reference(q, k, v):
        return xla_attend(q, k, v, dense_mask(visibility, LENGTH))

    def distance(actual):
        return [
            float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
            for a, b in zip(actual[1], expected[1], strict=True)
        ]

    expected = values_and_gradients(reference, [array.astype(jnp.float32) for array in halves])
    plain = distance(values_and_gradients(reference, halves))
    fast = distance(values_and_gradients(lambda q, k, v: fused.fused_attend(q, k, v, visibility), halves))
    assert all(a < max(2 * b, 0.01) for a, b in zip(fast, plain, strict=True)), (fast, plain)


def test_blocks_divide_the_row():
    assert [fused._largest_block(n, 1024) for n in (128, 384, 1024, 1152, 4096)] == [128, 384, 1024, 384, 1024]
