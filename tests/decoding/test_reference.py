"""`Engine(grammar="reference")` against whole sequences of the released generation loop (golden vectors G7).

The reference model's weights are used as they are; a difference in the decoder, the cache, the penalty, the guidance or
the modes shows as a different token.
"""

import dataclasses
import json
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from aromni_jax.config import ModelConfig
from aromni_jax.decoding import Engine, Guidance, Policy, Request, State
from aromni_jax.decoding.guidance import plan
from aromni_jax.vocabulary import JointVocabulary

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "golden" / "g7_generation"
CASES = json.loads((FOLDER / "cases.json").read_text())
SEQUENCES = np.load(FOLDER / "sequences.npz")
HEADS, WIDTH, SIZE = 2, 12, 12864
CONFIG = ModelConfig(
    vocab_size=SIZE, dim=24, layers=2, heads=HEADS, kv_heads=HEADS, head_dim=WIDTH, ffn_dim=64, max_positions=4096
)
OFFICIAL = JointVocabulary.aromni().to_dict()
VOCABULARY = JointVocabulary.from_dict({**OFFICIAL, "size": SIZE, "text": {"start": 12848, "stop": SIZE}})


@pytest.fixture(scope="module")
def model():
    """The golden weights; pairs (2i, 2i+1) of each head move to (i, i + half)."""
    tensors = safetensors.numpy.load_file(FOLDER / "model.safetensors")
    halves = np.concatenate([np.arange(0, WIDTH, 2), np.arange(1, WIDTH, 2)])

    def stacked(name, change):
        return jnp.stack([jnp.asarray(change(tensors[f"model.layers.{i}.{name}"])) for i in range(CONFIG.layers)])

    def heads(order):
        return lambda w: w.reshape(HEADS, WIDTH, -1)[:, order].transpose(2, 0, 1)

    def norm(v):
        return np.tile(v[halves], (HEADS, 1))

    attention = {
        "query": stacked("self_attn.q_proj.weight", heads(halves)),
        "key": stacked("self_attn.k_proj.weight", heads(halves)),
        "value": stacked("self_attn.v_proj.weight", heads(np.arange(WIDTH))),
        "out": stacked("self_attn.o_proj.weight", lambda w: w.T.reshape(HEADS, WIDTH, -1)),
    }
    for name in ("query", "key"):
        attention[f"{name}_norm"] = {
            "scale": stacked(f"self_attn.{name[0]}_norm.weight", norm),
            "bias": stacked(f"self_attn.{name[0]}_norm.bias", norm),
        }
    layers = {
        "attention": attention,
        "attention_norm": {"scale": stacked("input_layernorm.weight", np.asarray)},
        "ffn": {name: stacked(f"mlp.{name}_proj.weight", np.transpose) for name in ("gate", "up", "down")},
        "ffn_norm": {"scale": stacked("post_attention_layernorm.weight", np.asarray)},
    }
    params = {
        "embedder": {"embedding": jnp.asarray(tensors["model.embed_tokens.weight"])},
        "layers": layers,
        "final_norm": {"scale": jnp.asarray(tensors["model.norm.weight"])},
        "head": {"kernel": jnp.asarray(tensors["lm_head.weight"].T)},
    }
    return types.SimpleNamespace(params=params, config=CONFIG, vocabulary=VOCABULARY)


def request(name: str, limit: int) -> Request:
    options = CASES[name]["options"]
    prompt = SEQUENCES[f"{name}/prompts_padded_right_with_-1"][0].tolist()
    policies, guidance, first = {}, None, State.IMAGE
    if options["txt"]:
        txt = options["txt"]
        values = {"temperature": txt["temp"], "top_p": txt["top_p"], "repetition_penalty": txt["repetition_penalty"]}
        policies = {State.TEXT: Policy(**values), State.TRANSCRIPT: Policy(greedy=True, **values)}
        first = State.TRANSCRIPT if txt["greedy"] else None
    allowed = {State.TEXT, State.TRANSCRIPT}
    if options["img"]:
        assert options["img"]["greedy"]
        scales = options["img"]["cfg"]
        guidance = Guidance(scales["guidance_scale_text"], scales["guidance_scale_image"])
        allowed |= {State.IMAGE}
    return Request(
        prompt_tokens=prompt, max_new_tokens=limit, allowed=frozenset(allowed), first=first, policies=policies,
        guidance=guidance,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("asr", 84),
        ("asr_length_stop", 15),
        ("tts", 64),
        ("tts_modes_topp0", 96),
        ("chat_modes_topp0_sampling_default", 96),
        ("t2i", 1 + 1024),
        ("interleaved", 1109),
        ("interleaved_boi_disallowed", 1029),
    ],
)
def test_sequences_equal_the_reference(model, name, limit):
    result = Engine(model, grammar="reference", chunk=64).generate([request(name, limit)])[0]
    tokens, expected = result.tokens, SEQUENCES[f"{name}/emitted"][0]
    if name == "t2i":  # the reference does not yield the boi
        tokens = tokens[1:]
    if name == "interleaved_boi_disallowed":  # it stops by its own text limit there
        tokens = tokens[: len(expected)]
    np.testing.assert_array_equal(tokens, expected)
    if f"{name}/greedy_mode_per_text_step" in SEQUENCES:
        modes = SEQUENCES[f"{name}/greedy_mode_per_text_step"][0]
        text = result.states[: len(expected)]
        text = text[text != State.IMAGE]
        np.testing.assert_array_equal(text == State.TRANSCRIPT, modes)


def test_rows_of_a_batch_equal_the_reference_up_to_their_end(model):
    """Three prompts at once. The reference's penalty also sees its padding, id 1, which no row emits here."""
    golden = SEQUENCES["asr_batch3/emitted"]
    prompts = SEQUENCES["asr_batch3/prompts_padded_right_with_-1"]
    base = request("asr_batch3", 60)
    rows = [
        dataclasses.replace(base, prompt_tokens=[token for token in prompt.tolist() if token >= 0])
        for prompt in prompts
    ]
    for result, expected in zip(Engine(model, grammar="reference").generate(rows), golden, strict=True):
        ends = np.flatnonzero(np.isin(expected, (VOCABULARY.eos, VOCABULARY.eom)))
        stop = int(ends[0]) + 1 if ends.size else len(expected)
        np.testing.assert_array_equal(result.tokens[:stop], expected[:stop])


def test_boi_is_open_without_pictures(model):
    """Where the reference then crashes; its tokens up to there are ours."""
    expected = SEQUENCES["boi_crash/tokens_computed_including_final_boi"]
    base = request("asr", len(expected))
    prompt = SEQUENCES["boi_crash/prompt"].tolist()
    result = Engine(model, grammar="reference").generate([dataclasses.replace(base, prompt_tokens=prompt)])[0]
    np.testing.assert_array_equal(result.tokens, expected)


def test_side_rows_read_what_the_reference_feeds_them():
    """Its inputs end with the boi that our rows read while decoding."""
    golden = json.loads((FOLDER / "cfg_split.json").read_text())
    prompts = [ids[:-1] for ids in golden["input"]]
    side, rows, weights = plan(VOCABULARY, prompts, [Guidance(3.07, 1.15)] * 2, [True, True])
    boi = VOCABULARY.boi
    (_, _, image), (_, _, plain), (_, _, second) = side
    assert [[*image, boi], [*second, boi], [*plain, boi]] == [golden["output"][i] for i in (2, 3, 4)]
    assert rows.tolist() == [[0, 1], [-1, 2]], "the second prompt has no picture: two rows, not three"
    np.testing.assert_allclose(weights, [[3.07, 1.15 - 3.07, -0.15], [3.07, 0, -2.07]], rtol=1e-6)


def test_the_strict_grammar_does_differ(model):
    """Else the equalities above would not tell the two apart."""
    strict = Engine(model, chunk=64).generate([request("tts_modes_topp0", 96)])[0]
    assert strict.tokens.tolist() != SEQUENCES["tts_modes_topp0/emitted"][0].tolist()
