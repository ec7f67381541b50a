"""The weighted next-token loss against the numbers of SPEC 4.4 and its own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.losses import next_token_denominator, weighted_next_token


def _toy_scores(rows, length, vocab):
    """Logits of SPEC 4.4: ((7b + 3t + 5v) mod 11) / 4 - 1; with an identity head they are the hidden states."""
    b, t, v = np.indices((rows, length, vocab))
    return jnp.asarray(((7 * b + 3 * t + 5 * v) % 11) / 4 - 1, jnp.float32)


def _toy_loss(tokens, weights, vocab, first_row=0, **options):
    tokens = jnp.array(tokens)
    scores = _toy_scores(first_row + len(tokens), tokens.shape[1], vocab)[first_row:]
    weights = jnp.pad(jnp.array(weights, jnp.float32), ((0, 0), (1, 0)))
    return weighted_next_token(scores, jnp.eye(vocab), tokens, weights, **options)


A = [[0, 5, 6, 7, 3, 2], [0, 4, 5, 2, 2, 2]]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([[1, 1, 2, 2, 1], [1, 1, 1, 0, 0]], 2.829849198981103),
        ([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], 2.942371168154632),
        ([[2, 2, 2, 2, 1], [1, 1, 1, 0, 0]], 2.878346447940524),
        ([[1, 1, 1, 1, 1], [1, 3, 1, 0, 0]], 3.004182870932046),
    ],
)
def test_weighted_vectors(weights, expected):
    result = _toy_loss(A, weights, 8)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-6)
    first = [0, 2.939720, 3.301945, 1.758093, 3.001430, 3.604453]
    np.testing.assert_allclose(result.ce_bs[0], first, atol=1e-5)
    np.testing.assert_allclose(result.ce_bs[1, :4], [0, 2.448809, 3.251430, 3.233089], atol=1e-5)


def test_interior_eos_vector():
    np.testing.assert_allclose(_toy_loss([[0, 5, 2, 6, 7, 2]], [[2, 1, 2, 2, 1]], 8).loss, 3.163110444486298, rtol=1e-6)


def test_micro_batches_are_not_the_joint_batch():
    """Two samples alone, their mean, and the joint value that a global denominator restores (SPEC 4.4)."""
    weights = [[1, 1, 2, 2, 1], [1, 1, 1, 0, 0]]
    alone = [
        _toy_loss(A[i : i + 1], weights[i : i + 1], 8, first_row=i, normalise="micro_batch").loss for i in range(2)
    ]
    np.testing.assert_allclose(alone, [2.766451950831351, 2.977776111330525], rtol=1e-6)
    np.testing.assert_allclose(np.mean(alone), 2.872114031080938, rtol=1e-6)
    total = next_token_denominator(jnp.pad(jnp.array(weights, jnp.float32), ((0, 0), (1, 0))))
    parts = [_toy_loss(A[i : i + 1], weights[i : i + 1], 8, first_row=i, denominator=total).loss for i in range(2)]
    np.testing.assert_allclose(sum(parts), 2.829849198981103, rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([0, 1, 2, 2, 1, 1, 1, 2, 1, 1], 3.754178030494005), ([0] + [1] * 9, 3.749932114343576)],
)
def test_segment_vectors(weights, expected):
    ids = [[0, 10, 40, 21, 22, 41, 31, 40, 33, 41, 2]]
    np.testing.assert_allclose(_toy_loss(ids, [weights], 48).loss, expected, rtol=1e-6)


def test_token_normalisation_is_the_papers():
    """sum(w CE) / T: twice the weights, twice the loss; the default does not change."""
    ones, twos = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], [[2, 2, 2, 2, 2], [2, 2, 2, 0, 0]]
    single = _toy_loss(A, ones, 8, normalise="tokens").loss
    np.testing.assert_allclose(single, 2.942371168154632, rtol=1e-6)
    np.testing.assert_allclose(_toy_loss(A, twos, 8, normalise="tokens").loss, 2 * single, rtol=1e-6)
    np.testing.assert_allclose(_toy_loss(A, twos, 8).loss, single, rtol=1e-6)


def test_nothing_to_predict_is_zero_with_zero_gradient():
    scores, tokens = _toy_scores(2, 6, 8), jnp.array(A)

    def loss(scores):
        return weighted_next_token(scores, jnp.eye(8), tokens, jnp.zeros((2, 6))).loss

    value, gradient = jax.value_and_grad(loss)(scores)
    assert value == 0
    assert (gradient == 0).all()


def test_small_weights_are_not_blown_up():
    """The denominator never falls below one (SPEC 4.1)."""
    few = _toy_loss(A[:1], [[0.25, 0, 0, 0, 0]], 8)
    np.testing.assert_allclose(few.loss, 0.25 * few.ce_bs[0, 1], rtol=1e-6)


def test_borders_padding_and_first_tokens_do_not_count():
    """Even when the weights forget it: no prediction into another segment, into padding, or of a first token."""
    tokens = jnp.array([[3, 4, 5, 6, 7, 1, 1]])
    segments = jnp.array([[1, 1, 2, 2, 2, 0, 0]])
    scores = _toy_scores(1, 7, 8)
    result = weighted_next_token(scores, jnp.eye(8), tokens, jnp.ones((1, 7)), segments)
    np.testing.assert_array_equal(result.weights_bs, [[0, 1, 0, 1, 1, 0, 0]])
    np.testing.assert_allclose(result.loss, (result.ce_bs * result.weights_bs).sum() / 3, rtol=1e-6)
    without = weighted_next_token(scores, jnp.eye(8), tokens, jnp.ones((1, 7)))
    np.testing.assert_array_equal(without.weights_bs, [[0, 1, 1, 1, 1, 1, 1]])


def test_z_loss_is_weighted_and_normalised_like_the_rest():
    plain = _toy_loss(A, [[1, 1, 2, 2, 1], [1, 1, 1, 0, 0]], 8)
    with_z = _toy_loss(A, [[1, 1, 2, 2, 1], [1, 1, 1, 0, 0]], 8, z_loss=0.1)
    log_z = np.asarray(jax.nn.logsumexp(_toy_scores(2, 6, 8), axis=-1))
    weights = np.asarray(plain.weights_bs)
    expected = 0.1 * (log_z[:, :-1] ** 2 * weights[:, 1:]).sum() / weights.sum()
    np.testing.assert_allclose(with_z.loss - plain.loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(with_z.ce_bs, plain.ce_bs)


def test_correct_marks_the_most_probable_token():
    scores = _toy_scores(2, 6, 8)
    best = np.asarray(scores.argmax(-1))
    tokens = np.array(A)
    tokens[0, 3] = best[0, 2]  # the only right guess
    result = weighted_next_token(scores, jnp.eye(8), jnp.array(tokens), jnp.ones((2, 6)))
    expected = np.zeros((2, 6))
    expected[:, 1:] = best[:, :-1] == tokens[:, 1:]
    np.testing.assert_array_equal(result.correct_bs, expected)
    assert result.correct_bs[0, 3] == 1
