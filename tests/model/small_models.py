"""Small decoders and rows for the tests of this room."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax.config import ModelConfig
from aromni_jax.model import nest, parameter_table

SMALL = ModelConfig(vocab_size=61, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, perceptual_dim=4)


def lively_params(config, seed=0):
    """Parameters with every scale and bias random: at their usual start, norms hide mistakes."""
    rng = np.random.default_rng(seed)
    flat = {
        path: (spec.init == "ones") + 0.2 * rng.standard_normal(spec.shape)
        for path, spec in parameter_table(config).items()
    }
    return nest({path: jnp.asarray(value, config.param_dtype) for path, value in flat.items()})


def tokens(rows, length, config=SMALL, seed=2):
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length)), jnp.int32)


def change(config, **fields):
    return dataclasses.replace(config, **fields)


def assert_trees_close(actual, expected, rtol):
    """Every leaf within `rtol` of the largest entry of that leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.max(jnp.abs(b))) + 1e-30
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale, err_msg=jax.tree_util.keystr(path))
