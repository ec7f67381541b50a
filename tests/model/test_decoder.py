"""What must hold for every decoder: causality, packing, recomputation, loops, grouped heads, attention backends."""

import functools
import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL, assert_trees_close, change, lively_params, tokens

from aromni_jax.config import Remat
from aromni_jax.errors import UserError
from aromni_jax.losses import weighted_next_token
from aromni_jax.model import attention, forward, logits, plain

BACKENDS = ["xla", "blocked"]


@functools.partial(jax.jit, static_argnums=0)
def _grad_of_loss(config, params, ids, segments=None, positions=None):
    """(loss, (hidden, token losses)), gradients; compiled once per configuration and shape."""

    def loss(params):
        hidden_bsd, _ = forward(params, config, ids, positions, segments)
        result = weighted_next_token(hidden_bsd, params["head"]["kernel"], ids, jnp.ones(ids.shape), segments)
        return result.loss, (hidden_bsd, result.ce_bs)

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize(("backend", "order"), [("xla", "pre"), ("blocked", "swin")])
def test_causal_by_gradient(backend, order):
    """The state at s depends on the embedding at t exactly when t <= s."""
    config = change(SMALL, attention=backend, norm_order=order, vocab_size=10)
    params, ids = lively_params(config), jnp.arange(10)[None]  # every position has an embedding row of its own

    def states(embedding_vd):
        hidden_bsd, _ = forward({**params, "embedder": {"embedding": embedding_vd}}, config, ids)
        return hidden_bsd[0].sum(-1)

    influence_st = np.abs(jax.jit(jax.jacrev(states))(params["embedder"]["embedding"])).sum(-1)
    seen = np.tril(np.ones((10, 10), bool))
    assert (influence_st[~seen] == 0).all()
    assert (influence_st[seen] > 0).all()


def _packed(lengths, row):
    """Examples laid out one after the other in rows: ids, segments, positions, and where each example is."""
    examples = [np.asarray(tokens(1, length, seed=10 + i))[0] for i, length in enumerate(lengths)]
    ids, segments, positions = (np.zeros((2, row), np.int32) for _ in range(3))
    places, used, counts = [], [0, 0], [0, 0]
    for example in examples:
        r = 0 if used[0] + len(example) <= row else 1
        place = slice(used[r], used[r] + len(example))
        counts[r] += 1
        ids[r, place], segments[r, place], positions[r, place] = example, counts[r], np.arange(len(example))
        places.append((r, place))
        used[r] += len(example)
    assert max(used) <= row and min(used) < row, "the test needs padding and two rows"
    return examples, jnp.array(ids), jnp.array(segments), jnp.array(positions), places


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_rows_equal_separate_rows(backend):
    """States, token losses and gradients; lengths cross the blocks of the blocked backend."""
    params = lively_params(SMALL)
    examples, ids, segments, positions, places = _packed([70, 100, 5, 130, 17], 180)
    packed = _grad_of_loss(change(SMALL, attention=backend), params, ids, segments, positions)
    (_, (hidden_bsd, ce_bs)), gradients = packed
    # Separate: one example per row, padded to one length so that a single program serves them all.
    longest = max(map(len, examples))
    alone = jnp.array(np.stack([np.pad(example, (0, longest - len(example))) for example in examples]))
    real = jnp.array(np.stack([np.arange(longest) < len(example) for example in examples])).astype(jnp.int32)
    (_, (alone_bsd, alone_ce_bs)), separate = _grad_of_loss(SMALL, params, alone, real)
    for i, (r, place) in enumerate(places):
        length = place.stop - place.start
        np.testing.assert_allclose(hidden_bsd[r, place], alone_bsd[i, :length], atol=2e-5)
        np.testing.assert_allclose(ce_bs[r, place][1:], alone_ce_bs[i, 1:length], atol=2e-5)
    assert_trees_close(gradients, separate, rtol=2e-5)


def test_segments_matter():
    """The test above could not fail if segment ids were ignored and this passed."""
    params = lively_params(SMALL)
    _, ids, segments, positions, _ = _packed([70, 100, 5, 130, 17], 180)
    with_segments, _ = forward(params, SMALL, ids, positions, segments)
    without, _ = forward(params, SMALL, ids, positions)
    assert np.abs(with_segments - without).max() > 0.1


@pytest.mark.parametrize(("remat", "scan"), list(itertools.product(get_args(Remat), [True, False]))[1:])
def test_recomputed_and_unrolled_layers_equal_plain_ones(remat, scan):
    params, ids = lively_params(SMALL), tokens(2, 12)
    (value, _), gradients = _grad_of_loss(SMALL, params, ids)
    config = change(SMALL, remat=remat, scan_layers=scan)
    (other_value, _), other = _grad_of_loss(config, params, ids)
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    assert_trees_close(other, gradients, rtol=2e-5)


@pytest.mark.parametrize(("remat", "primitive"), [(remat, remat != "none") for remat in get_args(Remat)])
def test_recomputation_is_in_the_program(remat, primitive):
    """The equality above is not vacuous: the traced program recomputes exactly when asked."""
    config, params, ids = change(SMALL, remat=remat), lively_params(SMALL), tokens(2, 12)
    program = str(jax.make_jaxpr(lambda params: forward(params, config, ids)[0])(params))
    assert ("checkpoint" in program or "remat" in program) == primitive


@pytest.mark.parametrize("remat", ["full", "offload"])
def test_inputs_of_layers_wait_in_the_memory_of_the_host(remat):
    config, params, ids = change(SMALL, remat=remat), lively_params(SMALL), tokens(2, 12)
    program = _grad_of_loss.trace(config, params, ids).lower(lowering_platforms=("tpu",)).as_text()
    assert ('"pinned_host"' in program and '"device"' in program) == (remat == "offload")


def test_grouped_heads_equal_repeated_heads():
    grouped = lively_params(SMALL)
    ids = tokens(2, 12)
    repeated = jax.tree.map(lambda x: x, grouped)
    heads = dict(repeated["layers"]["attention"])
    group = SMALL.heads // SMALL.kv_heads
    for name in ("key", "value"):
        heads[name] = jnp.repeat(heads[name], group, axis=2)
    heads["key_norm"] = jax.tree.map(lambda x: jnp.repeat(x, group, axis=1), heads["key_norm"])
    repeated["layers"]["attention"] = heads
    for backend in BACKENDS:
        few, _ = forward(grouped, change(SMALL, attention=backend), ids)
        many, _ = forward(repeated, change(SMALL, attention=backend, kv_heads=SMALL.heads), ids)
        np.testing.assert_allclose(few, many, atol=1e-5)


def test_blocked_attention_equals_reference():
    """Values and gradients of attention alone, at no multiple of the block, with segments and padding."""
    rng = np.random.default_rng(0)
    q, k, v, weight = (jnp.asarray(rng.standard_normal((2, 150, n, 8)), jnp.float32) for n in (4, 2, 2, 4))
    segments = jnp.array(np.stack([np.repeat([1, 2, 3], [20, 120, 10]), np.repeat([1, 2, 0], [100, 40, 10])]))
    mask = plain.dense_mask(plain.Visibility(jnp.arange(150), segments, segments), 150)

    def run(name):
        def total(q, k, v):
            mixed = attention.BACKENDS[name].attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)
            return jnp.sum(mixed * weight), mixed

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)

    ((_, expected), gradients), ((_, actual), others) = run("xla"), run("blocked")
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for other, gradient in zip(others, gradients, strict=True):
        np.testing.assert_allclose(other, gradient, atol=2e-5)


def test_blocked_attention_keeps_the_dtype():
    config, params, ids = change(SMALL, compute_dtype="bfloat16"), lively_params(SMALL), tokens(2, 12)
    expected, _ = forward(params, config, ids)
    actual, _ = forward(params, change(config, attention="blocked"), ids)
    assert actual.dtype == jnp.bfloat16
    assert np.abs(np.asarray(actual - expected, np.float32)).mean() < 0.02


def test_logits_are_float32():
    params = lively_params(SMALL)
    config = change(SMALL, compute_dtype="bfloat16")
    hidden_bsd, _ = forward(params, config, tokens(1, 4))
    assert logits(params, config, hidden_bsd).dtype == jnp.float32
    assert logits(params, config, hidden_bsd[:, -1]).shape == (1, SMALL.vocab_size)


def test_unknown_backend_is_refused():
    with pytest.raises(UserError, match=r"model.attention is 'flash': use one of blocked, fused, xla"):
        forward(lively_params(SMALL), change(SMALL, attention="flash"), tokens(1, 4))


def test_backend_that_cannot_mask_segments_is_refused(monkeypatch):
    unmasked = attention.Backend(masks_segments=False, prepare=plain.dense_mask, attend=plain.xla_attend)
    monkeypatch.setitem(attention.BACKENDS, "plain", unmasked)
    config, params, ids = change(SMALL, attention="plain"), lively_params(SMALL), tokens(1, 4)
    forward(params, config, ids)
    with pytest.raises(UserError, match="cannot mask segments"):
        forward(params, config, ids, None, jnp.array([[1, 1, 2, 2]]))
