"""The shared vector quantiser: nearest codes, k-means, moving averages with revival, and a fit that learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from aromni_jax.codecs import fit as fit_module
from aromni_jax.codecs import vq
from aromni_jax.codecs.fit import Critic, FitConfig, Hint, Phase, Task, fit, make_step
from aromni_jax.errors import UserError


def test_nearest_is_the_smallest_distance():
    rng = np.random.default_rng(0)
    book, x = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(4, 5, 3)).astype(np.float32)
    expected = ((x[:, :, None] - book) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(vq.nearest(jnp.asarray(book), jnp.asarray(x)), expected)
    assert vq.nearest(jnp.zeros((3, 2)), jnp.ones((1, 2)))[0] == 0, "first on ties"


def test_straight_through():
    value, gradient = jax.value_and_grad(lambda x: vq.straight_through(x, jnp.float32(5.0)) ** 2)(2.0)
    assert (value, gradient) == (25.0, 10.0)


def test_kmeans_finds_separate_clusters():
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    x = np.random.default_rng(0).normal(0, 0.1, (400, 2)).astype(np.float32) + np.tile(centres, (100, 1))
    found = min(
        (
            np.sort(np.round(np.asarray(vq.kmeans(jax.random.key(seed), jnp.asarray(x), 4))), axis=0)
            for seed in range(5)
        ),
        key=lambda book: np.abs(book - np.sort(centres, axis=0)).sum(),
    )
    np.testing.assert_allclose(found, np.sort(centres, axis=0))


update = jax.jit(functools.partial(vq.update_codebook, decay=0.9))


def test_codebook_follows_its_vectors():
    state = vq.codebook_state(jnp.array([[0.0], [10.0]]), vectors_per_step=4.0)
    np.testing.assert_allclose(vq.codebook_of(state), [[0.0], [10.0]])
    x = jnp.array([[1.0], [1.0], [11.0], [11.0]])
    for step in range(200):
        state = update(state, x, vq.nearest(vq.codebook_of(state), x), jax.random.key(step))
    np.testing.assert_allclose(vq.codebook_of(state), [[1.0], [11.0]], atol=1e-3)


def test_a_dead_code_comes_back_and_padding_does_not_count():
    state = vq.codebook_state(jnp.array([[0.0], [1000.0]]), vectors_per_step=3.0)
    x = jnp.array([[0.0], [1.0], [77.0]])
    for step in range(120):
        codes = vq.nearest(vq.codebook_of(state), x).at[2].set(-1)
        state = update(state, x, codes, jax.random.key(step))
    book = np.sort(np.asarray(vq.codebook_of(state)).ravel())
    np.testing.assert_allclose(book, [0.0, 1.0], atol=0.05)


def test_perplexity():
    assert vq.perplexity(np.arange(8), 8) == pytest.approx(8)
    assert vq.perplexity(np.zeros(8, int), 8) == pytest.approx(1)


def test_params_that_do_not_fit_are_named():
    params = vq.init(lambda rngs: vq.Residual(4, (3,), rngs=rngs), seed=0)
    with pytest.raises(UserError, match="conv/"):
        vq.with_params(lambda rngs: vq.Residual(4, (5,), rngs=rngs), params)


def test_a_masked_block_does_not_see_the_padding():
    block = vq.Residual(4, (3,), rngs=nnx.Rngs(0))
    block.out.kernel[...] = jnp.eye(4)
    x = jax.random.normal(jax.random.key(0), (1, 6, 4))
    mask = (jnp.arange(6) < 4).astype(jnp.float32)[None, :, None]
    np.testing.assert_allclose(block(x * mask, mask)[:, :4], block(x[:, :4]), atol=1e-6)
    assert np.abs(block(x)[:, :4] - block(x[:, :4])).max() > 1e-3


class Line(nnx.Module):
    """A network of two matrices, enough to see a fit work."""

    def __init__(self, rngs):
        self.inward = nnx.Linear(8, 2, rngs=rngs)
        self.outward = nnx.Linear(2, 8, rngs=rngs)


def _lines(hint=None, critic=None):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4, 8)).astype(np.float32) * 2

    def batches():
        while True:
            label = rng.integers(4, size=64)
            yield {"x": points[label] + rng.normal(0, 0.01, (64, 8)).astype(np.float32), "label": label}

    task = Task(
        build=Line,
        codes=4,
        encoder=frozenset({"inward"}),
        encode=lambda net, batch: (net.inward(batch["x"]), jnp.ones(64)),
        decode=lambda net, z, batch: net.outward(z),
        real=lambda batch: batch["x"],
        loss=lambda made, real, batch: jnp.mean((made - real) ** 2),
        hint=hint,
        critic=critic,
    )
    return task, batches()


def test_a_fit_learns_and_is_reproducible():
    def run():
        return fit(*_lines(), FitConfig(steps=250, peak_lr=3e-2, warmup=10, seed=1))

    params, losses = run()
    assert losses[-1] < 0.2 * losses[0]
    again, _ = run()
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_a_fit_of_one_step_and_of_more_codes_than_vectors(monkeypatch):
    monkeypatch.setattr(fit_module, "_KMEANS_VECTORS", 64)
    params, losses = fit(*_lines(), FitConfig(steps=1))
    assert params["codebook"].shape == (4, 2) and np.isfinite(losses).all()
    task, batches = _lines()
    for codes, steps, message in ((65, 1, "a codebook has 1 to 64"), (4, 0, "at least one is needed")):
        with pytest.raises(UserError, match=message):
            fit(dataclasses.replace(task, codes=codes), batches, FitConfig(steps=steps))


def _changed(before, after):
    return {name for name in before if not np.array_equal(before[name]["kernel"], after[name]["kernel"])}


@pytest.mark.parametrize(("phase", "moved"), [(Phase.QUANTISED, {"inward", "outward"}), (Phase.SETTLED, {"outward"})])
def test_only_the_decoder_learns_when_settled(phase, moved):
    task, batches = _lines()
    optimizer = optax.adam(1e-2)
    net = vq.init(task.build, 0)
    book = vq.codebook_state(jnp.eye(4, 2), 64.0)
    before = jax.tree.map(np.array, {"net": net, "book": book})
    params = {"net": net}
    step = make_step(task, optimizer, 0.25)
    params, _, book, _ = step(params, optimizer.init(params), book, next(batches), jax.random.key(0), phase)
    assert _changed(before["net"], params["net"]) == moved
    assert np.array_equal(book["total"], before["book"]["total"]) == (phase is Phase.SETTLED)


def test_a_hint_reaches_the_encoder():
    """With a decoder that cannot learn, only the reader can move the encoder."""
    hint = Hint(
        build=lambda rngs: nnx.Linear(2, 4, rngs=rngs),
        loss=lambda reader, z, batch: jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(reader(z), batch["label"])
        ),
        weight=1.0,
    )
    task, batches = _lines(hint)
    task = dataclasses.replace(task, loss=lambda made, real, batch: 0.0)
    optimizer = optax.sgd(1e-2)
    params = {"net": vq.init(task.build, 0), "hint": vq.init(hint.build, 1)}
    before = jax.tree.map(np.array, params)
    params, *_ = make_step(task, optimizer, 0.0)(
        params, optimizer.init(params), None, next(batches), jax.random.key(0), Phase.FREE
    )
    moved = np.abs(params["net"]["inward"]["kernel"] - before["net"]["inward"]["kernel"]).max()
    assert moved > 1e-4
    assert not _changed({"x": before["net"]["outward"]}, {"x": params["net"]["outward"]})


def _contested(phase):
    """One step in which only a critic has anything to say: {part: whether it moved}."""
    critic = Critic(build=lambda rngs: nnx.Linear(8, 1, rngs=rngs), view=lambda x, batch: x, weight=1.0)
    task, batches = _lines(critic=critic)
    task = dataclasses.replace(task, loss=lambda made, real, batch: 0.0)
    optimizer = optax.sgd(1e-2)
    params = {"net": vq.init(task.build, 0), "critic": vq.init(critic.build, 1)}
    before = jax.tree.map(np.array, params)
    book = vq.codebook_state(jnp.eye(4, 2), 64.0)
    batch = next(batches)
    after, *_ = make_step(task, optimizer, 0.0)(params, optimizer.init(params), book, batch, jax.random.key(0), phase)
    return before, jax.tree.map(np.array, after), batch


def test_a_critic_teaches_the_decoder_while_it_settles_and_never_the_encoder():
    for phase, moved in ((Phase.QUANTISED, set()), (Phase.SETTLED, {"outward"})):
        before, after, _ = _contested(phase)
        assert _changed(before["net"], after["net"]) == moved
        assert _changed({"x": before["critic"]}, {"x": after["critic"]}) == ({"x"} if moved else set())


def test_both_sides_of_the_contest_get_better_at_it():
    before, after, batch = _contested(Phase.SETTLED)

    def score(critic, x):
        return float(np.mean(x @ critic["kernel"]))

    def made(net):
        z = batch["x"] @ net["inward"]["kernel"] + net["inward"]["bias"]
        codes = np.eye(4, 2)[((z[:, None] - np.eye(4, 2)) ** 2).sum(-1).argmin(1)]
        return codes @ net["outward"]["kernel"] + net["outward"]["bias"]

    old, new = (
        score(critic, batch["x"]) - score(critic, made(before["net"])) for critic in (before["critic"], after["critic"])
    )
    assert new > old  # the critic tells real from made better
    assert score(before["critic"], made(after["net"])) > score(before["critic"], made(before["net"]))
