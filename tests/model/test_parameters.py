"""The parameter table and everything derived from it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import SMALL, change

from aromni_jax.config import LoraConfig, ModelConfig
from aromni_jax.errors import UserError
from aromni_jax.model import (
    Decoder,
    abstract_params,
    check_params,
    flatten,
    flops_per_token,
    forward,
    init_params,
    logits,
    nest,
    parameter_counts,
    parameter_table,
)

CONFIG_7B = ModelConfig(
    vocab_size=65536, dim=4096, layers=32, heads=32, kv_heads=32, head_dim=128, ffn_dim=11008, param_dtype="bfloat16"
)
CONFIG_34B = ModelConfig(
    vocab_size=65536, dim=8192, layers=48, heads=64, kv_heads=8, head_dim=128, ffn_dim=22016, norm_order="swin"
)


def test_table_abstract_and_initial_values_agree():
    table, abstract = parameter_table(SMALL), flatten(abstract_params(SMALL))
    values = flatten(init_params(SMALL, jax.random.key(0)))
    assert list(table) == list(abstract) == list(values)
    for path, spec in table.items():
        assert spec.shape == abstract[path].shape == values[path].shape
        assert spec.dtype == abstract[path].dtype == values[path].dtype
        assert len(spec.axes) == len(spec.shape)


def test_initial_values():
    config = change(SMALL, vocab_size=500, dim=64)
    for path, value in flatten(init_params(config, jax.random.key(0))).items():
        if path.endswith("scale"):
            assert (value == 1).all()
        elif path.endswith("bias"):
            assert (value == 0).all()
        else:
            assert abs(float(value.std()) - 0.02) < 0.002, path
            assert abs(float(value.mean())) < 0.002, path


def test_new_parameters_do_not_change_the_others():
    without = flatten(init_params(change(SMALL, perceptual_dim=0), jax.random.key(0)))
    with_projection = flatten(init_params(SMALL, jax.random.key(0)))
    assert set(with_projection) - set(without) == {"perceptual/kernel", "perceptual/bias"}
    for path, value in without.items():
        np.testing.assert_array_equal(value, with_projection[path])


def test_flax_module_declares_the_same_parameters():
    decoder = Decoder(SMALL, jax.random.key(0))
    _, state = nnx.split(decoder)
    expected = init_params(SMALL, jax.random.key(0))
    assert jax.tree.structure(nnx.to_pure_dict(state)) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(state), expected)
    assert state["layers"]["attention"]["query"].get_metadata("axes") == ("layers", "embed", "heads", "head_dim")


def test_flax_module_runs_and_is_declared_without_memory():
    decoder = Decoder(SMALL, jax.random.key(0))
    ids = jnp.arange(10)[None]
    logits_bsv, hidden_bsd = decoder(ids)
    params = init_params(SMALL, jax.random.key(0))
    np.testing.assert_array_equal(hidden_bsd, forward(params, SMALL, ids)[0])
    np.testing.assert_array_equal(logits_bsv, logits(params, SMALL, hidden_bsd))
    assert logits_bsv.dtype == jnp.float32
    shapes = nnx.eval_shape(lambda: Decoder(CONFIG_7B, jax.random.key(0)))
    assert shapes.head.kernel.shape == (4096, 65536)


def test_counts_of_the_released_sizes():
    """SPEC 3.1 counts one QK-norm vector per layer; here every head has its own."""
    shared = 7_013_158_912
    extra = CONFIG_7B.layers * 2 * 2 * (CONFIG_7B.heads - 1) * CONFIG_7B.head_dim
    assert parameter_counts(CONFIG_7B)["total"] == shared + extra
    assert abs(parameter_counts(CONFIG_34B)["total"] / 34.29e9 - 1) < 1e-3
    counts = parameter_counts(SMALL)
    total = sum(math.prod(spec.shape) for spec in parameter_table(SMALL).values())
    assert counts["total"] == total == sum(v for k, v in counts.items() if k != "total")


def test_flops_follow_the_compiler():
    """Forward matrix products of one whole row, as XLA counts them; the mask halves attention in our count only."""
    config = change(SMALL, vocab_size=512, dim=128, head_dim=32, ffn_dim=256, perceptual_dim=0, scan_layers=False)
    length = 64
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def run(params, ids):
        return logits(params, config, forward(params, config, ids)[0])

    counted = jax.jit(run).lower(abstract_params(config), ids).compile().cost_analysis()["flops"]
    ours = flops_per_token(config, 2 * length - 1, training=False) * length
    assert 0.95 < ours / counted < 1.0
    assert flops_per_token(config, length) == 3 * flops_per_token(config, length, training=False)


def test_nest_and_flatten_are_inverse():
    flat = {"a/b/c": 1, "a/b/d": 2, "e": 3}
    assert nest(flat) == {"a": {"b": {"c": 1, "d": 2}}, "e": 3}
    assert flatten(nest(flat)) == flat


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda flat: flat.pop("head/kernel"), "head/kernel is missing"),
        (lambda flat: flat.update({"head/extra": jnp.ones(1)}), "head/extra is unknown"),
        (lambda flat: flat.update({"head/kernel": jnp.ones((2, 3))}), "head/kernel has shape"),
    ],
)
def test_check_params_names_the_parameter(spoil, message):
    flat = flatten(init_params(SMALL, jax.random.key(0)))
    check_params(nest(flat), SMALL, "model.npz")
    spoil(flat)
    with pytest.raises(UserError, match=f"model.npz.*{message}"):
        check_params(nest(flat), SMALL, "model.npz")


def test_adapters_are_rows_of_the_table():
    config = dataclasses.replace(SMALL, lora=LoraConfig(rank=3, matrices=("query", "out", "down")))
    base, table = parameter_table(SMALL), parameter_table(config)
    added = {path: table[path] for path in table.keys() - base.keys()}
    assert len(added) == 6 and {path: table[path] for path in base} == base
    for path in ("layers/attention/query", "layers/attention/out", "layers/ffn/down"):
        a, b = added[f"{path}_lora/a"], added[f"{path}_lora/b"]
        inputs = 1 + base[path].external.inputs
        assert a.shape == (*base[path].shape[:inputs], 3) and a.axes == (*base[path].axes[:inputs], "rank")
        assert b.shape[1:] == (3, *base[path].shape[inputs:]) and b.init == "zeros"
    counts = parameter_counts(config)
    assert counts["adapters"] == counts["total"] - parameter_counts(SMALL)["total"]


def test_flops_of_training_a_part():
    config = dataclasses.replace(SMALL, lora=LoraConfig(rank=3))
    table, weights = parameter_table(config), parameter_counts(config)
    forward = flops_per_token(config, 16, training=False)
    assert flops_per_token(config, 16, trained=table) == flops_per_token(config, 16) == 3 * forward
    adapters = {path: spec for path, spec in table.items() if "_lora" in path}
    base = weights["attention"] + weights["ffn"] + weights["head"]
    assert flops_per_token(config, 16, trained=adapters) == 3 * forward - 2 * base
    # The output head alone: no gradient is passed on.
    head = {"head/kernel": table["head/kernel"]}
    assert flops_per_token(config, 16, trained=head) == forward + 2 * weights["head"]
