"""Sampling and guidance against golden vectors G3 and G4 of the reference, and against plain numpy."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.decoding import State
from aromni_jax.decoding.guidance import Branches, mix
from aromni_jax.decoding.reference import reference_mode
from aromni_jax.decoding.sampling import GREEDY, Policies, Policy, choose, penalise, row_keys
from aromni_jax.decoding.selection import truncate
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden"
CASES = json.loads((GOLDEN / "g4_logits" / "cases.json").read_text())
AROMNI = JointVocabulary.aromni()


def close(ours, theirs):
    """Equal where finite, and -inf in the same places."""
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def full(rows, value, dtype=jnp.float32):
    return jnp.full(rows, value, dtype)


@pytest.mark.parametrize("case", [c for c in CASES if "repetition_penalty" in c], ids=lambda c: c["file"])
def test_text_processors_equal_the_reference(case):
    data = np.load(GOLDEN / "g4_logits" / case["file"])
    rows, size = data["logits"].shape
    allowed = np.zeros(size, bool)
    allowed[case["allowed"]] = True
    if data["input_ids"].shape[1] >= case["boi_disallowed_from_index"]:
        allowed[case["boi"]] = False
    seen = np.zeros((rows, size), bool)
    for row, ids in enumerate(data["input_ids"]):
        seen[row, ids] = True
    logits = jnp.where(allowed[None], data["logits"], -jnp.inf)
    close(logits, data["after_disallow_boi"])
    logits = penalise(logits, seen, full(rows, case["repetition_penalty"]))
    close(logits, data["after_repetition"])
    logits = logits / case["temperature"]
    close(logits, data["after_temperature"])
    logits = truncate(logits, full(rows, 0, jnp.int32), full(rows, case["top_p"]))
    close(logits, data["after_top_p"])
    np.testing.assert_allclose(jax.nn.softmax(logits), data["probs"], atol=1e-6)
    policy = Policies.stack(
        [{State.TEXT: Policy(True, case["temperature"], 0, case["top_p"], case["repetition_penalty"])}] * rows
    )
    at = policy.at(full(rows, State.TEXT, jnp.int32))
    mask = np.broadcast_to(allowed, (rows, size))
    tokens = choose(
        jnp.asarray(data["logits"]), mask, jnp.asarray(seen), at, row_keys([0] * rows), full(rows, 0, jnp.int32)
    )
    np.testing.assert_array_equal(tokens, data["argmax"])


@pytest.mark.parametrize("case", [c for c in CASES if "guidance_scale_text" in c], ids=lambda c: c["file"])
def test_image_processors_equal_the_reference(case):
    data = np.load(GOLDEN / "g4_logits" / case["file"])
    n, size = case["batch"], data["logits"].shape[1]
    text, image = case["guidance_scale_text"], case["guidance_scale_image"]
    main = jnp.arange(n)
    branches = Branches(
        source_r=jnp.tile(main, 3),
        reads_r=jnp.repeat(jnp.arange(3), n),
        prompt_r=full(3 * n, 1, jnp.int32),
        image_row_b=main + n,
        plain_row_b=main + 2 * n,
        weights_b3=jnp.tile(jnp.asarray([text, image - text, 1 - image], jnp.float32), (n, 1)),
    )
    logits = mix(jnp.asarray(data["logits"]), branches, full(n, State.IMAGE, jnp.int32))
    np.testing.assert_allclose(logits, data["after_cfg"][:n], rtol=1e-5, atol=2e-5)
    allowed = np.zeros(size, bool)
    allowed[case["image_tokens"]] = True
    logits = jnp.where(allowed[None], logits, -jnp.inf) / case["temperature"]
    close_enough = {"rtol": 1e-4, "atol": 2e-5}
    np.testing.assert_allclose(logits, data["after_temperature"][:n], **close_enough)
    logits = truncate(logits, full(n, 0, jnp.int32), full(n, case["top_p"]))
    np.testing.assert_allclose(logits, data["after_top_p"][:n], **close_enough)
    np.testing.assert_array_equal(jnp.argmax(logits, -1), data["selected_tokens"][:n])
    # Outside IMAGE the main rows' own logits come through untouched.
    np.testing.assert_array_equal(
        mix(jnp.asarray(data["logits"]), branches, full(n, State.TEXT, jnp.int32)), data["logits"][:n]
    )


@pytest.mark.parametrize(("default", "key"), [(False, "mode_default_sample"), (True, "mode_default_greedy")])
def test_selector_flags_equal_the_reference(default, key):
    data = np.load(GOLDEN / "g3_fsm" / "fsm.npz")
    mode = full(4, default, bool)
    for step, expected in enumerate(data[key]):
        mode = reference_mode(AROMNI, jnp.asarray(data["tokens"][:, step]), mode)
        np.testing.assert_array_equal(mode, expected, err_msg=f"step {step}")


def test_selector_starts_anew_with_the_batch():
    golden = json.loads((GOLDEN / "g3_fsm" / "fsm_reset.json").read_text())
    mode = None
    for entry in golden["trace"]:
        if entry["action"] == "reset()":
            mode = None
            continue
        if mode is None or mode.shape[0] != entry["batch"]:
            mode = full(entry["batch"], golden["default_greedy"], bool)
        mode = reference_mode(AROMNI, full(entry["batch"], entry["last_token"], jnp.int32), mode)
        assert mode.tolist() == entry["mode"]


CHOOSE = jax.jit(choose)


def draw(policy, logits, seeds, steps, allowed=None):
    rows, size = len(seeds), len(logits)
    allowed = np.ones(size, bool) if allowed is None else np.asarray(allowed)
    return np.asarray(
        CHOOSE(
            np.tile(np.asarray(logits, np.float32), (rows, 1)),
            np.tile(allowed, (rows, 1)),
            np.zeros((rows, size), bool),
            Policies.stack([{State.TEXT: policy}] * rows).at(np.full(rows, State.TEXT, np.int32)),
            row_keys(seeds),
            np.asarray(steps, np.int32),
        )
    )


def test_sampled_frequencies():
    logits, seeds, steps = np.log([0.5, 0.3, 0.15, 0.05]), [7] * 4000, range(4000)

    def frequencies(policy, allowed=None):
        return np.bincount(draw(policy, logits, seeds, steps, allowed), minlength=4) / 4000

    np.testing.assert_allclose(frequencies(Policy()), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(frequencies(Policy(top_p=0.75)), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(frequencies(Policy(top_k=2)), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(frequencies(Policy(), [False, False, True, True]), [0, 0, 0.75, 0.25], atol=0.03)
    flat = np.array([0.5, 0.3, 0.15, 0.05]) ** 0.5
    np.testing.assert_allclose(frequencies(Policy(temperature=2.0)), flat / flat.sum(), atol=0.03)
    assert frequencies(Policy(top_k=1))[0] == frequencies(Policy(top_p=0.0))[0] == frequencies(GREEDY)[0] == 1


def test_a_draw_depends_on_own_seed_and_step_only():
    logits = np.zeros(50)
    one = draw(Policy(), logits, [8, 9, 3, 1, 0, 2, 4, 5], [5] * 8)
    other = draw(Policy(), logits, [3, 30, 31, 32, 33, 34, 35, 36], [5, 1, 2, 3, 4, 6, 7, 8])
    assert one[2] == other[0]
    assert len(set(one)) > 1
    assert len(set(draw(Policy(), logits, [3] * 8, range(8)))) > 1


@pytest.mark.parametrize("greedy", [True, False])
def test_an_allowed_id_is_chosen_whatever_the_logits(greedy):
    """Those of a model that has gone wrong, or of one whose logits leave float32 by the penalty."""
    rng = np.random.default_rng(0)
    logits = np.repeat(np.asarray([np.nan, np.inf, -np.inf, 3e38, -3e38], np.float32), 2)[:, None] * np.ones((1, 9))
    allowed = np.zeros(logits.shape, bool)
    allowed[np.arange(10), rng.integers(1, 8, 10)] = True
    policy = Policy(greedy=greedy, temperature=0.5, top_k=3, top_p=0.9, repetition_penalty=5.0)
    policies = Policies.stack([dict.fromkeys(State, policy)] * 10).at(jnp.zeros(10, jnp.int32))
    seen = jnp.asarray(rng.random(logits.shape) < 0.5)
    chosen = choose(
        jnp.asarray(logits, jnp.float32), jnp.asarray(allowed), seen, policies, row_keys(range(10)), jnp.arange(10)
    )
    assert allowed[np.arange(10), chosen].all()


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [-1, float("inf"), 1e300])
def test_policies_out_of_range(field, value):
    with pytest.raises(UserError, match=f"policy: {field} {re.escape(str(value))} is out of range"):
        Policy(**{field: value})
    assert GREEDY.greedy
