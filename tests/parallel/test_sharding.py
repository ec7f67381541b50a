"""Sharding rules, and the model and losses on a mesh against one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from aromni_jax.config import MeshConfig, ModelConfig
from aromni_jax.errors import UserError
from aromni_jax.losses import image_span_mask, perceptual, weighted_next_token
from aromni_jax.model import flatten, forward, init_params, parameter_table
from aromni_jax.parallel import (
    AXES,
    DEFAULT_RULES,
    ShardingRules,
    batch_sharding,
    make_mesh,
    own_rows,
    param_shardings,
    shard,
)

CONFIG = ModelConfig(
    vocab_size=96, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, perceptual_dim=4, norm_order="swin"
)


def test_rules_give_specs():
    assert DEFAULT_RULES.spec("embed", "heads", "head_dim") == P("fsdp", "tensor", None)
    assert DEFAULT_RULES.spec("batch", "seq", None) == P(("replica", "fsdp"), "context", None)
    assert hash(ShardingRules()) == hash(DEFAULT_RULES)


def test_collision_is_refused():
    with pytest.raises(ValueError, match=r"batch -> .*embed -> "):
        DEFAULT_RULES.spec("batch", "embed")


def test_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="unknown logical axis 'embd'"):
        DEFAULT_RULES.spec("embd")


def test_axes_that_do_not_divide_are_dropped_innermost_first():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    assert DEFAULT_RULES.spec("kv_heads", shape=(3,), mesh=mesh) == P(None)
    assert DEFAULT_RULES.spec("kv_heads", shape=(4,), mesh=mesh) == P("tensor")
    assert DEFAULT_RULES.spec("batch", shape=(6,), mesh=mesh) == P("replica")
    assert DEFAULT_RULES.spec("batch", shape=(8,), mesh=mesh) == P(("replica", "fsdp"))


def test_parameters_are_split_and_batches_too():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    shardings = flatten(param_shardings(parameter_table(CONFIG), mesh))
    assert list(shardings) == list(parameter_table(CONFIG))
    assert shardings["layers/attention/query"].spec == P(None, "fsdp", "tensor", None)
    assert shardings["embedder/embedding"].spec == P("tensor", "fsdp")
    assert shardings["final_norm/scale"].spec == P(None)
    rows = jax.device_put(jnp.zeros((8, 16)), batch_sharding(mesh))
    assert {piece.data.shape for piece in rows.addressable_shards} == {(2, 16)}


@dataclasses.dataclass(frozen=True)
class Device:
    """One of two of process 0, or of another one."""

    id: int
    platform = device_kind = "cpu"

    @property
    def process_index(self):
        return self.id // 2


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1, 8, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 2, 1, 2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((1, 2, 1, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 2, 4, 1), [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8, 1), [(0, 1)] * 4),
    ],
)
def test_processes_that_share_rows_read_the_same(sizes, expected, monkeypatch):
    mesh = Mesh(np.array([Device(number) for number in range(8)], object).reshape(sizes), AXES)
    found = []
    for process in range(4):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(own_rows(batch_sharding(mesh)))
    assert found == expected


def test_processes_that_share_a_part_of_their_rows_are_refused():
    mesh = Mesh(np.array([Device(number) for number in range(6)], object).reshape(1, 2, 3, 1), AXES)
    with pytest.raises(UserError, match=r"share a part .* mesh\.context x mesh\.tensor"):
        own_rows(batch_sharding(mesh))


def test_shard_is_nothing_without_a_mesh():
    x = jnp.ones((4, 4))
    assert "sharding_constraint" not in str(jax.make_jaxpr(lambda x: shard(x, "batch", None))(x))
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert "sharding_constraint" in str(jax.make_jaxpr(lambda x: shard(x, "batch", None))(x))


def _batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 96, (8, 16))
    tokens[:, 4], tokens[:, 5:9] = 5, rng.integers(10, 20, (8, 4))  # a picture of four codes in every row
    segments = np.repeat([[1] * 9 + [2] * 5 + [0] * 2], 8, axis=0)
    weights = rng.uniform(0, 2, (8, 16)).astype(np.float32)
    return tuple(jnp.asarray(x) for x in (tokens, segments, weights))


def _loss(params, batch, config):
    tokens, segments, weights = batch
    codebook = jnp.asarray(np.random.default_rng(1).standard_normal((10, 4)), jnp.float32)
    hidden, _ = forward(params, config, tokens, None, segments)
    mask = image_span_mask(tokens, weights > 0, boi=5, image_tokens=4)
    extra = perceptual(hidden, params["perceptual"], codebook, tokens, mask, image_start=10)
    main = weighted_next_token(hidden, params["head"]["kernel"], tokens, weights, segments, tile=config.logits_tile)
    return main.loss + extra.loss


@functools.cache
def _single():
    params = init_params(CONFIG, jax.random.key(0))
    return params, jax.jit(jax.value_and_grad(_loss), static_argnums=2)(params, _batch(), CONFIG)


@pytest.mark.parametrize(
    ("mesh", "fields"),
    [
        (MeshConfig(), {}),
        (MeshConfig(replica=2, fsdp=2, tensor=2), {"attention": "blocked", "logits_tile": 40}),
        (MeshConfig(fsdp=2, context=2, tensor=2), {"remat": "full"}),
        (MeshConfig(fsdp=1, replica=2, tensor=4), {}),
        (MeshConfig(fsdp=1, replica=2, context=4), {"scan_layers": False}),
    ],
)
def test_sharded_equals_single_device(mesh, fields):
    params, (value, gradients) = _single()
    mesh = make_mesh(mesh)
    shardings = param_shardings(parameter_table(CONFIG), mesh)
    config = dataclasses.replace(CONFIG, **fields)
    step = jax.jit(jax.value_and_grad(_loss), static_argnums=2, out_shardings=(None, shardings))
    with jax.set_mesh(mesh):
        split = jax.device_put(params, shardings)
        actual, others = step(split, jax.device_put(_batch(), batch_sharding(mesh)), config)
    np.testing.assert_allclose(actual, value, rtol=1e-6)
    for (path, other), gradient in zip(flatten(others).items(), flatten(gradients).values(), strict=True):
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(np.asarray(other), np.asarray(gradient), atol=1e-5 * scale, err_msg=path)


def test_sharded_rows_that_are_mixed_up_are_noticed():
    params, (value, _) = _single()
    tokens, segments, weights = _batch()
    assert abs(float(_loss(params, (tokens[::-1], segments, weights), CONFIG) - value)) > 1e-4
