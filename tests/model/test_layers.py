"""Norms, rotary positions and the order of norms against the numbers of SPEC 3.2 and 3.3."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL, change, lively_params, tokens

from aromni_jax.config import ModelConfig
from aromni_jax.model import block as block_module
from aromni_jax.model import forward
from aromni_jax.model.attention import BACKENDS
from aromni_jax.model.norms import head_layer_norm, rms_norm
from aromni_jax.model.rope import rotary_angles, rotate

NORMED = [-1.069043, -0.167261, -0.1, 1.803565]


def test_head_layer_norm():
    x = jnp.array([1.0, 2, 3, 6]).reshape(1, 1, 1, 4)
    scale, bias = jnp.array([[1, 0.5, 2, 1]]), jnp.array([[0, 0.1, -0.1, 0.2]])
    np.testing.assert_allclose(head_layer_norm(x, scale, bias, 1e-5).ravel(), NORMED, atol=2e-6)


@pytest.mark.parametrize(
    ("x", "position", "expected"),
    [
        (NORMED, 2, [0.596969, -0.902473, -0.136049, 1.801205]),
        (list(range(1, 9)), 3, [-1.272233, -1.838865, 1.683929, 4.707907, 4.817777, 6.147278, 6.975969, 8.020964]),
    ],
)
def test_rotation_is_the_interleaved_one_reordered(x, position, expected):
    """SPEC gives interleaved pairs; the same numbers come out here in [firsts, seconds] order."""
    order = np.r_[0 : len(x) : 2, 1 : len(x) : 2]
    angles = rotary_angles(jnp.array([[position]]), len(x), 1e4)
    turned = rotate(jnp.array(x, jnp.float32)[order].reshape(1, 1, 1, -1), angles)
    np.testing.assert_allclose(turned.ravel(), np.array(expected)[order], atol=1e-5)


def test_heads_in_another_order_of_axes():
    """With positions last, as a TPU has them: the same numbers."""
    x_bshe = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 8)), jnp.float32)
    scale, bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 8)), jnp.float32)
    positions = jnp.array([[0, 1, 2], [7, 8, 3]])

    def made(x, form):
        return rotate(head_layer_norm(x, scale, bias, 1e-5, form), rotary_angles(positions, 8, 1e4, form), form)

    swapped = made(jnp.einsum("bshe->bhes", x_bshe), "bhes")
    np.testing.assert_allclose(jnp.einsum("bhes->bshe", swapped), made(x_bshe, "bshe"), atol=1e-6)


def test_a_model_with_its_heads_in_another_order(monkeypatch):
    """Values and gradients of a forward pass, layers recomputed."""
    fused = BACKENDS["fused"]
    monkeypatch.setitem(BACKENDS, "fused", dataclasses.replace(fused, form=lambda: "bhes"))
    params, ids = lively_params(SMALL), tokens(2, 12)

    def loss(params, attention):
        hidden, _ = forward(params, change(SMALL, attention=attention, remat="full"), ids)
        return jnp.einsum("bsd,d->", hidden**2, jnp.cos(jnp.arange(SMALL.dim))), hidden

    results = [jax.value_and_grad(loss, has_aux=True)(params, attention) for attention in ("fused", "xla")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


def test_scores_depend_on_distance_only():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(query_position, key_position):
        a = rotate(jnp.array(q), rotary_angles(jnp.array([[query_position]]), 8, 1e4))
        b = rotate(jnp.array(k), rotary_angles(jnp.array([[key_position]]), 8, 1e4))
        return float((a * b).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_norms_compute_in_float32_and_keep_the_dtype():
    x = jnp.full((1, 1, 64), 300.0, jnp.bfloat16)
    normed = rms_norm(x, jnp.ones(64, jnp.float32), 1e-5)
    assert normed.dtype == jnp.bfloat16
    np.testing.assert_allclose(normed.astype(jnp.float32), 1.0)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("pre", [1.070654, -1.047169, 5.131161, 1.953539]),
        ("swin", [0.137926, -1.178116, 7.130783, 2.889068]),
    ],
)
def test_norm_order(monkeypatch, order, expected):
    """The numbers of SPEC 3.2, with both branches replaced by its matrices."""
    mix = jnp.array([[0.1, 0.2, 0, 0], [0, 0.1, 0.2, 0], [0, 0, 0.1, 0.2], [0.2, 0, 0, 0.1]])
    monkeypatch.setattr(block_module, "_attention", lambda layer, config, x_bsd, *rest: x_bsd @ mix.T)
    monkeypatch.setattr(
        block_module, "_swiglu", lambda layer, config, x_bsd, shard: x_bsd @ jnp.diag(jnp.array([0.5, -0.5, 1, 2]))
    )
    config = ModelConfig(
        vocab_size=4, dim=4, layers=1, heads=1, kv_heads=1, head_dim=4, ffn_dim=4, norm_order=order, norm_eps=1e-5
    )
    layer = {
        "attention": {},
        "ffn": {},
        "attention_norm": {"scale": jnp.array([1, 0.5, 2, 1])},
        "ffn_norm": {"scale": jnp.array([0.5, 1, 1, 2])},
    }
    x = jnp.array([1, -2, 3, 0.5]).reshape(1, 1, 4)
    out = block_module.block(layer, config, x, (), None, lambda x, *axes: x)
    np.testing.assert_allclose(out.ravel(), expected, atol=2e-6)


def test_bfloat16_compute_stays_close():
    params, ids = lively_params(SMALL), tokens(2, 12)
    exact, _ = forward(params, SMALL, ids)
    rough, _ = forward(params, change(SMALL, compute_dtype="bfloat16"), ids)
    assert rough.dtype == jnp.bfloat16
    error = np.abs(np.asarray(rough, np.float32) - np.asarray(exact))
    assert 0 < error.mean() < 0.05
