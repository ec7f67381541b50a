"""The tiled cross entropy equals the plain one, in value and gradient, for every tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.losses import cross_entropy

ROWS, LENGTH, DIM, VOCAB = 2, 7, 12, 37


def _problem(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(scale * rng.standard_normal((ROWS, LENGTH, DIM)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((DIM, VOCAB)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, VOCAB, (ROWS, LENGTH)), jnp.int32)
    weights = jnp.asarray(rng.standard_normal((2, ROWS, LENGTH)), jnp.float32)
    return hidden, head, targets, weights


def _plain(hidden, head, targets):
    scores = jnp.einsum("bsd,dv->bsv", hidden, head)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    ce = log_z - jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return ce, log_z, (scores.argmax(-1) == targets).astype(jnp.float32)


def _mixture(function, targets, weights):
    """A scalar through which both differentiable outputs send gradients, the second one as a z-loss does."""

    def total(hidden, head):
        ce, log_z, _ = function(hidden, head, targets)
        return jnp.sum(weights[0] * ce + weights[1] * log_z**2)

    return jax.value_and_grad(total, (0, 1))


@pytest.mark.parametrize("tile", [0, VOCAB, VOCAB + 5, 36, 20, 8, 1])
def test_tiles_equal_plain(tile):
    hidden, head, targets, weights = _problem()

    def tiled(hidden, head, targets):
        return cross_entropy(hidden, head, targets, tile)

    for actual, expected in zip(tiled(hidden, head, targets), _plain(hidden, head, targets), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    value, gradients = _mixture(tiled, targets, weights)(hidden, head)
    expected_value, expected_gradients = _mixture(_plain, targets, weights)(hidden, head)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for actual, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0, 10, 25]), st.sampled_from([1e-3, 1.0, 100.0]))
def test_any_scale_is_finite_and_right(seed, tile, scale):
    hidden, head, targets, _ = _problem(seed, scale)
    result = cross_entropy(hidden, head, targets, tile)
    expected = _plain(hidden.astype(jnp.float32), head, targets)
    np.testing.assert_allclose(result.ce_bs, expected[0], rtol=1e-5, atol=1e-4 * scale)
    np.testing.assert_array_equal(result.correct_bs, expected[2])
    assert (result.ce_bs >= 0).all()


def test_scores_of_all_columns_exist_only_with_one_tile():
    hidden, head, targets, weights = _problem()

    def shapes(tile):
        program = jax.make_jaxpr(_mixture(lambda h, w, t: cross_entropy(h, w, t, tile), targets, weights))(hidden, head)
        return str(program)

    whole = f"f32[{ROWS},{LENGTH},{VOCAB}]"
    assert whole in shapes(0)
    assert whole not in shapes(10)
    assert f"f32[{ROWS},{LENGTH},10]" in shapes(10)


def test_bfloat16_products_accumulate_in_float32():
    hidden, head, targets, weights = _problem()
    rounded = hidden.astype(jnp.bfloat16)
    for tile in (0, 10):
        result = cross_entropy(rounded, head, targets, tile)
        assert result.ce_bs.dtype == jnp.float32
        exact = _plain(rounded.astype(jnp.float32), head.astype(jnp.bfloat16).astype(jnp.float32), targets)
        np.testing.assert_allclose(result.ce_bs, exact[0], atol=1e-4)
        _, (d_hidden, d_head) = _mixture(lambda h, w, t, tile=tile: cross_entropy(h, w, t, tile), targets, weights)(
            rounded, head
        )
        assert d_hidden.dtype == jnp.bfloat16
        assert d_head.dtype == jnp.float32
