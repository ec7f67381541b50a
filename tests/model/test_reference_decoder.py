"""The decoder against the reference implementation's stored outputs (golden set G1), float32, both norm orders, GQA."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import change

from aromni_jax.convert import load_model
from aromni_jax.convert.layouts import pieces, to_external
from aromni_jax.model import KVCache, flatten, forward, logits
from tests.golden_models import FOLDER, VOCABULARY

TOLERANCE = 1e-4
COLUMNS = slice(None, None, 8)  # the stored files keep every eighth column of logits
CACHE = 48  # one length for all cached tests: one compiled step
run = jax.jit(forward, static_argnames="config")


def run_rows(params, config, ids, positions=None, mask=None):
    """`forward` without a cache, with every argument given, so that all tests share one compiled program."""
    positions = np.tile(np.arange(ids.shape[1]), (len(ids), 1)) if positions is None else positions
    mask = np.ones_like(ids) if mask is None else mask
    return run(params, config, ids, positions.astype(np.int32), mask.astype(np.int32))


@functools.cache
def _load(name):
    model = load_model(FOLDER / name, VOCABULARY)
    with np.load(FOLDER / name / "cases.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return model.config, model.params, arrays, json.loads((FOLDER / name / "config.json").read_text())


@pytest.fixture(params=["mha", "gqa", "mha_swin", "gqa_swin"])
def case(request):
    return _load(request.param)


def _check(params, config, hidden_bsd, expected, real=None):
    actual = np.asarray(logits(params, config, hidden_bsd))[..., COLUMNS]
    real = np.ones(actual.shape[:2], bool) if real is None else real
    np.testing.assert_allclose(actual[real], expected[real], atol=TOLERANCE)


@pytest.mark.parametrize("attention", ["xla", "blocked"])
def test_logits_and_hidden_states(case, attention):
    config, params, arrays, _ = case
    config = change(config, attention=attention)
    hidden_bsd, cache = run_rows(params, config, arrays["input_ids"])
    assert cache is None
    np.testing.assert_allclose(hidden_bsd, arrays["plain_hidden_states"][-1], atol=TOLERANCE)
    _check(params, config, hidden_bsd, arrays["plain_logits"])


def test_state_after_two_layers(case):
    """Entry i of the stored states is the un-normed output of layer i - 1: that of a decoder cut off there."""
    config, params, arrays, _ = case
    cut = {**params, "layers": jax.tree.map(lambda x: x[:2], params["layers"])}
    cut["final_norm"] = {"scale": jnp.ones_like(params["final_norm"]["scale"])}
    hidden_bsd, _ = run_rows(cut, change(config, layers=2), arrays["input_ids"])
    raw = arrays["plain_hidden_states"][2]
    normed = raw / np.sqrt(np.mean(raw**2, axis=-1, keepdims=True) + config.norm_eps)
    np.testing.assert_allclose(hidden_bsd, normed, atol=TOLERANCE)


def test_wrong_norm_order_is_noticed():
    config, params, arrays, _ = _load("gqa")
    hidden_bsd, _ = run_rows(params, change(config, norm_order="swin"), arrays["input_ids"])
    assert np.abs(np.asarray(hidden_bsd) - arrays["plain_hidden_states"][-1]).max() > 0.1


@pytest.mark.parametrize("side", ["leftpad", "rightpad"])
def test_padding(case, side):
    config, params, arrays, _ = case
    mask = arrays[f"{side}_attention_mask"]
    positions = arrays["leftpad_position_ids"] if side == "leftpad" else None
    hidden_bsd, _ = run_rows(params, config, arrays[f"{side}_input_ids"], positions, mask)
    assert np.isfinite(hidden_bsd).all()
    _check(params, config, hidden_bsd, arrays[f"{side}_logits"], mask == 1)


def test_positions_with_gaps(case):
    config, params, arrays, _ = case
    hidden_bsd, _ = run_rows(params, config, arrays["input_ids"], arrays["custpos_position_ids"])
    _check(params, config, hidden_bsd, arrays["custpos_logits"])


def test_prefill_then_single_steps(case):
    config, params, arrays, _ = case
    ids = arrays["input_ids"]
    cache = KVCache.create(config, 2, CACHE)
    states = []
    for start, stop in [(0, 9)] + [(i, i + 1) for i in range(9, 17)]:
        real = np.ones((2, stop - start), np.int32)
        hidden_bsd, cache = run(params, config, ids[:, start:stop], segment_ids_bs=real, cache=cache)
        states.append(hidden_bsd)
    _check(params, config, jnp.concatenate(states, axis=1), arrays["cached_logits"])
    # Both layouts are rotate-half here: the reference permutes at run time what the importer permuted once.
    stored = arrays["cache_keys_after_rope_hf_layout"]
    keys_lbkte = np.stack([layer.keys_bkte for layer in cache.layers])
    np.testing.assert_allclose(keys_lbkte[:, :, :, :17], stored, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["plain", "leftpad"])
def test_greedy_generation(case, side):
    config, params, arrays, _ = case
    expected = arrays["generate_sequences" if side == "plain" else "generate_leftpad_sequences"]
    prompt = arrays["input_ids"][:, :9] if side == "plain" else arrays["leftpad_input_ids"]
    real = np.ones(prompt.shape, np.int32) if side == "plain" else arrays["leftpad_attention_mask"]
    cache = KVCache.create(config, 2, CACHE)
    hidden_bsd, cache = run(params, config, prompt, segment_ids_bs=real, cache=cache)
    finished = np.zeros(2, bool)
    for column in range(prompt.shape[1], expected.shape[1]):
        picked = np.asarray(logits(params, config, hidden_bsd[:, -1])).argmax(-1)
        picked = np.where(finished, 1, picked)
        np.testing.assert_array_equal(picked, expected[:, column])
        finished |= picked == 2
        real = np.ones((2, 1), np.int32)
        hidden_bsd, cache = run(params, config, picked[:, None].astype(np.int32), segment_ids_bs=real, cache=cache)


def test_gradients_of_the_training_loss(case):
    config, params, arrays, reference = case
    ids, labels = arrays["input_ids"], arrays["labels"]

    def loss(params):
        hidden_bsd, _ = forward(params, config, ids)
        scores_bsv = jax.nn.log_softmax(logits(params, config, hidden_bsd[:, :-1]))
        picked = jnp.take_along_axis(scores_bsv, jnp.maximum(labels[:, 1:], 0)[..., None], axis=-1)[..., 0]
        valid = labels[:, 1:] != -100
        return -jnp.sum(jnp.where(valid, picked, 0.0)) / valid.sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    names = {piece.name("hf-reference"): piece for piece in pieces(config)}
    wanted = [name.removeprefix("grad/") for name in arrays if name.startswith("grad/")]
    assert len(wanted) > 15
    for name in wanted:
        ours = _external_gradient(names[name], gradients)
        if name == "model.embed_tokens.weight":
            ours = ours.copy()
            ours[reference["pad_token_id"]] = 0  # the reference never trains the padding row
        if ours.ndim == 2:
            ours = ours[:: 4 if ours.shape[0] < config.vocab_size else 16]
        theirs = arrays[f"grad/{name}"]
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=name)


def _external_gradient(piece, gradients):
    """In the reference's layout."""
    array = np.asarray(flatten(gradients)[piece.path])
    return to_external(array if piece.layer is None else array[piece.layer], piece.spec, "hf-reference")


def test_metas_own_transformer(case):
    """What Meta's implementation gives for the same weights (golden set G1m), prompts of different lengths included."""
    config, params, arrays, _ = case
    hidden_bsd, _ = run_rows(params, config, arrays["input_ids"])
    _check(params, config, hidden_bsd, arrays["meta_logits"])
    cache = KVCache.create(config, 2, CACHE)
    real = arrays["leftpad_attention_mask"]
    np.testing.assert_array_equal(real.sum(1), arrays["meta_ragged_prompt_lengths"])
    hidden_bsd, cache = run(params, config, arrays["leftpad_input_ids"], segment_ids_bs=real, cache=cache)
    one = np.ones((2, 1), np.int32)
    for step, picked_b in enumerate(arrays["meta_ragged_decode_tokens"].T):
        _check(params, config, hidden_bsd[:, -1:], arrays["meta_ragged_decode_logits"][:, step : step + 1])
        hidden_bsd, cache = run(params, config, picked_b[:, None].astype(np.int32), segment_ids_bs=one, cache=cache)
    _check(params, config, hidden_bsd[:, -1:], arrays["meta_ragged_decode_logits"][:, -1:])
