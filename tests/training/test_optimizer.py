"""Schedules against the figures of SPEC 5; every optimiser against its definition or its promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aromni_jax.config import ModelConfig, OptimizerConfig
from aromni_jax.model import flatten, init_params, nest, parameter_table
from aromni_jax.training.optimizer import decay_mask, learning_rate, make_optimizer

MODEL = ModelConfig(vocab_size=20, dim=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn_dim=24, perceptual_dim=4)


def linear(peak, warmup):
    return OptimizerConfig(peak_lr=peak, warmup_steps=warmup, decay="linear")


@pytest.mark.parametrize(
    ("config", "steps", "points"),
    [
        (linear(1e-5, 4500), 150_000, {0: 0, 2250: 5e-6, 4500: 1e-5, 75_000: 5.154639e-6, 150_000: 0}),
        (linear(6e-5, 7000), 140_000, {3500: 3e-5, 7000: 6e-5, 70_000: 3.157895e-5}),
        (linear(2e-5, 900), 18_000, {450: 1e-5, 9000: 1.052632e-5}),
    ],
)
def test_linear_schedule_has_the_figures_of_the_specification(config, steps, points):
    schedule = learning_rate(config, steps)
    for step, expected in points.items():
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-12)


def test_cosine_and_constant_schedules():
    cosine = learning_rate(OptimizerConfig(peak_lr=1.0, warmup_steps=10, end_lr_ratio=0.1), 110)
    np.testing.assert_allclose([cosine(s) for s in (5, 10, 60, 110)], [0.5, 1.0, 0.55, 0.1], rtol=1e-6)
    constant = learning_rate(OptimizerConfig(peak_lr=1.0, warmup_steps=0, decay="constant"), 100)
    assert constant(0) == constant(99) == 1.0


def test_only_matrices_and_embeddings_decay():
    mask = flatten(decay_mask(init_params(MODEL, jax.random.key(0))))
    still = {name for name, decays in mask.items() if not decays}
    assert still == {name for name in parameter_table(MODEL) if "norm" in name or "perceptual" in name}


def test_adamw_is_the_textbook_update():
    config = OptimizerConfig(peak_lr=0.1, warmup_steps=0, decay="constant", weight_decay=0.01, clip_norm=1.0)
    params = {"head": {"kernel": jnp.array([2.0, -1.0])}}
    grads = {"head": {"kernel": jnp.array([3.0, 4.0])}}  # norm 5: clipped to [0.6, 0.8]
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    clipped = np.array([0.6, 0.8])
    adam = clipped / (np.abs(clipped) + config.eps)  # the first step: both moments are debiased to the gradient's
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * (adam + 0.01 * np.array([2.0, -1.0])), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_every_optimiser_moves_all_parameters_but_not_those_without_gradient(name):
    params = init_params(MODEL, jax.random.key(0))
    optimizer = make_optimizer(OptimizerConfig(name=name, peak_lr=1e-2, warmup_steps=0, weight_decay=0.1), 10)
    grads = {
        path: jnp.zeros_like(leaf) if "perceptual" in path else jax.random.normal(jax.random.key(1), leaf.shape)
        for path, leaf in flatten(params).items()
    }
    updates, _ = jax.jit(optimizer.update)(nest(grads), optimizer.init(params), params)
    for path, update in flatten(updates).items():
        moved = float(jnp.abs(update).max())
        assert (moved == 0) == ("perceptual" in path), path
        assert moved < 0.1, path


def test_muon_turns_each_head_matrix_into_an_orthogonal_one():
    config = OptimizerConfig(name="muon", peak_lr=1.0, warmup_steps=0, decay="constant", clip_norm=0.0)
    params = init_params(MODEL, jax.random.key(0))
    optimizer = make_optimizer(config, 10)
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), params)
    updates = flatten(jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0])
    for path, shape in (("layers/attention/out", (2, 16, 16)), ("layers/attention/key", (2, 16, 8))):
        for matrix in np.asarray(updates[path]).reshape(shape):
            values = np.linalg.svd(matrix, compute_uv=False)
            assert values.max() / values.min() < 2.0, path  # Newton-Schulz leaves them near, not at, one value
    flat = np.linalg.svd(np.asarray(grads["layers"]["attention"]["key"][0]).reshape(16, 8), compute_uv=False)
    assert flat.max() / flat.min() > 2.0  # and the gradient itself was not orthogonal


def test_unclipped_when_asked():
    big = {"head": {"kernel": jnp.full((4,), 1e3)}}
    rates = []
    for clip in (0.0, 1.0):
        optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, eps=1.0, clip_norm=clip), 10)
        updates, _ = optimizer.update(big, optimizer.init(big), big)
        rates.append(optax.global_norm(updates))
    assert rates[0] > 2 * rates[1]
