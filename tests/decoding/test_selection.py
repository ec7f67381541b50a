"""Choosing without a sort, against choosing by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aromni_jax.decoding.selection import at_share, first_best, truncate

TRUNCATE, AT_SHARE = jax.jit(truncate), jax.jit(at_share)


def by_sort(logits, k, p):
    """The ids kept of one row, in float64; and whether rounding may decide otherwise."""
    logits = logits.astype(np.float64)
    ordered = np.sort(logits)[::-1]
    k = k or len(logits)
    mass = np.exp(ordered[:k] - ordered[0])
    before = (np.cumsum(mass) - mass) / mass.sum()
    kept = before < p if p < 1 else np.ones(len(mass), bool)
    kept[0] = True
    worst = ordered[:k][kept].min()
    unsure = p < 1 and np.abs(before - p).min() < 1e-5
    return np.flatnonzero(logits >= worst), unsure


def rows(seed, size, spread, ties):
    """Six rows: with ties, with ids that are closed; flat and steep ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(6, size)).astype(np.float32)
    if ties:
        logits = np.round(logits, 1)
    logits[3:, rng.random(size) < 0.5] = -np.inf
    logits[:, 0] = 0.5
    return logits


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([5, 300]), st.sampled_from([0.1, 1.0, 4.0]), st.booleans(),
    st.lists(st.sampled_from([0, 1, 2, 50, 64, 65, 130, 299, 400]), min_size=6, max_size=6),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]), min_size=6, max_size=6),
)  # fmt: skip
@example(0, 300, 0.1, True, [65, 130, 0, 65, 0, 299], [1.0, 0.5, 0.9, 0.9, 0.99, 0.1])
def test_truncation_equals_a_sort(seed, size, spread, ties, top_k, top_p):
    logits = rows(seed, size, spread, ties)
    top_k = np.minimum(np.asarray(top_k, np.int32), 400)
    top_p = np.asarray(top_p, np.float32)
    kept = np.asarray(TRUNCATE(logits, top_k, top_p))
    for b in range(6):
        expected, unsure = by_sort(logits[b], int(min(top_k[b], size)), float(top_p[b]))
        if unsure:
            continue
        finite = expected[np.isfinite(logits[b][expected])]
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(kept[b])), finite)
        np.testing.assert_array_equal(kept[b][finite], logits[b][finite])


def test_a_row_does_not_depend_on_its_neighbours():
    """One of them must be searched, which the others need not be."""
    logits = rows(1, 300, 1.0, False)
    k, p = np.full(6, 50, np.int32), np.full(6, 0.7, np.float32)
    alone = np.asarray(TRUNCATE(logits, k, p))
    k[2], p[2] = 0, 0.95
    together = np.asarray(TRUNCATE(logits, k, p))
    assert (together[2] != alone[2]).any()
    np.testing.assert_array_equal(np.delete(together, 2, 0), np.delete(alone, 2, 0))


@pytest.mark.parametrize("size", [5, 256, 300])
def test_shares_are_met_in_order(size):
    logits = rows(2, size, 1.0, False)
    best = first_best(logits)
    np.testing.assert_array_equal(best, np.argmax(logits, axis=-1))
    mass = np.exp(logits.astype(np.float64))
    up_to = np.cumsum(mass, axis=-1) / mass.sum(axis=-1, keepdims=True)
    for share in np.linspace(0, 0.9999, 41):
        ids = np.asarray(AT_SHARE(logits, np.full(6, share, np.float32), best))
        for b in range(6):
            assert np.isfinite(logits[b, ids[b]])
            low = up_to[b, ids[b] - 1] if ids[b] else 0
            assert low - 1e-5 <= share <= up_to[b, ids[b]] + 1e-5


def test_the_first_of_equals_is_best():
    logits = np.asarray([[1, 3, 3, 2], [-np.inf, -np.inf, -1, -1]], np.float32)
    assert first_best(jnp.asarray(logits)).tolist() == [1, 2]
    nothing_but_one = np.asarray([[-np.inf, 0, -np.inf]], np.float32)
    for share in (0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))):
        assert AT_SHARE(nothing_but_one, np.asarray([share], np.float32), np.asarray([1], np.int32)).tolist() == [1]
