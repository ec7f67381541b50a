"""The layouts of SPEC 3.4: rules written out once more by hand, and inverses of each other."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.config import ModelConfig
from aromni_jax.convert import open_source
from aromni_jax.convert.layouts import LAYOUTS, ahead, external_shape, from_external, pieces, to_external, transposed
from aromni_jax.errors import UserError
from aromni_jax.model import PRESETS, parameter_counts
from tests.golden_models import FOLDER, VOCABULARY

CONFIG = ModelConfig(vocab_size=50, dim=24, layers=2, heads=4, kv_heads=2, head_dim=6, ffn_dim=40, perceptual_dim=3)
PIECES = {piece.path: piece for piece in pieces(CONFIG)}


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(st.sampled_from(sorted(PIECES)), st.sampled_from(LAYOUTS), st.sampled_from([1, 2]), st.integers(0, 9))
def test_there_and_back_is_the_same_bits(path, layout, ranks, seed):
    spec = PIECES[path].spec
    tensor = random(external_shape(spec, layout, ranks), seed)
    ours = from_external(tensor, spec, layout, ranks)
    assert ours.shape == spec.shape
    np.testing.assert_array_equal(to_external(ours, spec, layout, ranks), tensor)


def test_every_piece_once_and_in_the_order_of_use():
    found = [(piece.path, piece.layer) for piece in pieces(CONFIG)]
    assert len(set(found)) == len(found) == 2 * 13 + 3
    assert found[0] == ("embedder/embedding", None) and found[-1] == ("head/kernel", None)
    assert [layer for _, layer in found if layer is not None] == [0] * 13 + [1] * 13
    assert [piece.path for piece in pieces(CONFIG, training_only=True)] == ["perceptual/kernel", "perceptual/bias"]


def test_rows_of_q_as_the_specification_permutes_them():
    """W of [heads * e, d]: view(heads, e/2, 2, d), swap the middle axes; and back to [in, out] per head."""
    spec = PIECES["layers/attention/query"].spec
    h, e, d = 4, 6, 24
    meta = random((h * e, d))
    upstream = meta.reshape(h, e // 2, 2, d).swapaxes(1, 2).reshape(h * e, d)
    ours = from_external(meta, spec, "meta")
    np.testing.assert_array_equal(ours, upstream.reshape(h, e, d).transpose(2, 0, 1))
    np.testing.assert_array_equal(to_external(ours, spec, "hf"), upstream)
    np.testing.assert_array_equal(to_external(ours, spec, "hf-reference"), meta)


def test_rows_of_v_and_of_the_output_are_never_permuted():
    for path in ("layers/attention/value", "layers/attention/out"):
        spec = PIECES[path].spec
        tensor = random(external_shape(spec, "meta"))
        for layout in LAYOUTS:
            np.testing.assert_array_equal(to_external(from_external(tensor, spec, "meta"), spec, layout), tensor)


def test_ranks_keep_their_own_head_norms():
    """SPEC 3.4: each shard's vector is repeated over its own heads."""
    config = dataclasses.replace(CONFIG, qk_norm_groups=2)
    grouped = next(piece.spec for piece in pieces(config) if piece.path == "layers/attention/query_norm/scale")
    np.testing.assert_array_equal(from_external(np.arange(12.0), grouped, "meta", ranks=2)[:, :2], [[0, 2], [6, 8]])
    spec = PIECES["layers/attention/query_norm/scale"].spec
    two_ranks = np.arange(12, dtype=np.float32)
    ours = from_external(two_ranks, spec, "meta", ranks=2)
    first = [0, 2, 4, 1, 3, 5]
    np.testing.assert_array_equal(ours, [first, first, np.add(first, 6), np.add(first, 6)])
    np.testing.assert_array_equal(to_external(ours, spec, "hf"), ours)
    with pytest.raises(UserError, match="QK-norm vectors of their own, hf-reference holds 1; convert to hf"):
        to_external(ours, spec, "hf-reference", where="x")


def test_upstream_tensors_are_those_of_transformers():
    """Golden: the reference's q and k tensors as transformers 5 has them, bit for bit."""
    wanted = safetensors.numpy.load_file(FOLDER / "gqa" / "upstream" / "changed_tensors.safetensors")
    source = open_source(FOLDER / "gqa", VOCABULARY)
    found = {piece.name("hf"): to_external(source.read(piece), piece.spec, "hf") for piece in pieces(source.config)}
    assert len(wanted) == 18
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("preset", "parameters"), [("chameleon-7b", 7_013_158_912), ("anole-7b", 7_013_158_912), ("ar-omni", 7_013_158_912)]
)
def test_presets_have_the_published_size(preset, parameters):
    config = dataclasses.replace(PRESETS[preset], perceptual_dim=0)
    assert parameter_counts(config)["total"] == parameters
    shapes = [external_shape(piece.spec, "meta") for piece in pieces(config)]
    assert sum(int(np.prod(shape)) for shape in shapes) == parameters


def test_the_large_preset():
    assert round(parameter_counts(PRESETS["chameleon-34b"])["total"] / 1e9, 2) == 34.29


def test_presets_have_the_published_names_and_shapes():
    """SPEC 3.5, key by key."""
    config = PRESETS["anole-7b"]
    found = {piece.name("meta"): external_shape(piece.spec, "meta") for piece in pieces(config)}
    square, norm = (4096, 4096), (128,)
    layer = {
        "attention.wq.weight": square, "attention.wk.weight": square, "attention.wv.weight": square,
        "attention.wo.weight": square, "attention.q_normalization.weight": norm, "attention.q_normalization.bias": norm,
        "attention.k_normalization.weight": norm, "attention.k_normalization.bias": norm,
        "feed_forward.w1.weight": (11008, 4096), "feed_forward.w2.weight": (4096, 11008),
        "feed_forward.w3.weight": (11008, 4096), "attention_norm.weight": (4096,), "ffn_norm.weight": (4096,),
    }  # fmt: skip
    wanted = {f"layers.{number}.{name}": shape for number in range(32) for name, shape in layer.items()}
    wanted |= {"tok_embeddings.weight": (65536, 4096), "norm.weight": (4096,), "output.weight": (65536, 4096)}
    assert found == wanted


@given(st.integers(1, 70), st.integers(1, 70))
def test_transposition_in_tiles(rows, columns):
    x = random((rows, columns))
    y = transposed(x)
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(y, x.T)


def test_ahead_keeps_order_and_passes_errors_on():
    assert list(ahead([lambda i=i: i for i in range(5)])) == [0, 1, 2, 3, 4]
    assert list(ahead([])) == []

    def fail():
        raise ValueError("broken")

    results = ahead([lambda: 1, fail])
    assert next(results) == 1
    with pytest.raises(ValueError, match="broken"):
        next(results)


def test_a_config_is_hashable_with_any_preset():
    assert {dataclasses.replace(preset, remat="none") for preset in PRESETS.values()}
