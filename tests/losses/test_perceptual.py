"""The perceptual loss: SPEC 4.4 C, packed rows, masks, and which parameters learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.losses import image_span_mask, perceptual

CODEBOOK = jnp.array([[0.5, -0.5], [1, 0], [0, 1], [-1, 0.25], [0.25, 0.75], [-0.5, -0.25]])
PROJECTION = {
    "kernel": jnp.array([[0.2, -0.1, 0.4], [0.3, 0.5, -0.2]]).T,
    "bias": jnp.array([0.05, -0.05]),
}
BOI = 8197
TOKENS = jnp.array([[0, 9, BOI, 4, 7, 5, 9, 8196, 2]])
SPAN = {"boi": BOI, "image_tokens": 4}


def _hidden(length=9):
    i, j = np.indices((length, 3))
    return jnp.asarray(((3 * i + 2 * j) % 7) / 4 - 0.75, jnp.float32)[None]


def _mask(tokens=TOKENS, counted=True):
    return image_span_mask(tokens, jnp.full(tokens.shape, counted), **SPAN)


@pytest.mark.parametrize(
    ("align", "reduce", "expected"),
    [
        ("same_position", "mean", 0.393125),
        ("same_position", "sum", 0.78625),
        ("predict", "mean", 0.40875),
        ("predict", "sum", 0.8175),
    ],
)
def test_vectors_of_both_readings(align, reduce, expected):
    result = perceptual(_hidden(), PROJECTION, CODEBOOK, TOKENS, _mask(), image_start=4, align=align, reduce=reduce)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-6)
    assert result.tokens == 4


def test_mask_covers_whole_spans_of_counted_pictures():
    tokens = jnp.array([[BOI, 4, 4, 4, 4, 1, BOI, 4, 4, 4, 4], [1, 1, BOI, 4, 4, 4, 4, BOI, 4, 4, 4]])
    whole = [[0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]]
    np.testing.assert_array_equal(_mask(tokens), whole)
    counted = jnp.ones(tokens.shape, bool).at[0, 0].set(False)
    some = image_span_mask(tokens, counted, **SPAN)
    np.testing.assert_array_equal(some[0], [0] * 7 + [1] * 4)
    np.testing.assert_array_equal(image_span_mask(tokens, counted, boi=BOI, image_tokens=20), np.zeros((2, 11)))


def test_packed_rows_equal_separate_rows():
    """Two pictures in one row, or in two rows: the same loss and the same gradient of the projection."""

    def loss(projection, hidden, tokens):
        return perceptual(hidden, projection, CODEBOOK, tokens, _mask(tokens), image_start=4).loss

    other = TOKENS.at[0, 3:7].set(jnp.array([8, 8, 6, 4]))
    hidden = jnp.concatenate([_hidden(), _hidden() ** 2], axis=1)
    packed = jax.value_and_grad(loss)(PROJECTION, hidden, jnp.concatenate([TOKENS, other], axis=1))
    apart = jax.value_and_grad(loss)(PROJECTION, hidden.reshape(2, 9, 3), jnp.concatenate([TOKENS, other]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), packed, apart)


def test_global_denominator_joins_parts():
    other = TOKENS.at[0, 3:7].set(jnp.array([8, 8, 6, 4]))
    both = jnp.concatenate([TOKENS, other])
    hidden = jnp.concatenate([_hidden(), _hidden() ** 2])
    whole = perceptual(hidden, PROJECTION, CODEBOOK, both, _mask(both), image_start=4).loss
    parts = [
        perceptual(
            hidden[i : i + 1],
            PROJECTION,
            CODEBOOK,
            both[i : i + 1],
            _mask(both[i : i + 1]),
            image_start=4,
            denominator=jnp.array(8.0),
        ).loss
        for i in range(2)
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)


def test_no_picture_is_zero_with_zero_gradients():
    def loss(hidden, projection):
        return perceptual(hidden, projection, CODEBOOK, TOKENS, _mask(counted=False), image_start=4).loss

    value, gradients = jax.value_and_grad(loss, (0, 1))(_hidden(), PROJECTION)
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_gradients_reach_states_and_projection_but_not_the_codebook():
    def loss(hidden, projection, codebook):
        return perceptual(hidden, projection, codebook, TOKENS, _mask(), image_start=4).loss

    hidden, projection, codebook = jax.grad(loss, (0, 1, 2))(_hidden(), PROJECTION, CODEBOOK)
    touched = np.abs(hidden[0]).sum(-1) > 0
    np.testing.assert_array_equal(touched, [0, 0, 1, 1, 1, 1, 0, 0, 0])  # the states that predict positions 3..6
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(projection))
    assert (codebook == 0).all()
