"""Decoding on a mesh of eight devices, and with other caches, against one device and the exact cache."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aromni_jax.config import MeshConfig, ModelConfig
from aromni_jax.decoding import Done, Engine, Guidance, Policy, Request, State
from aromni_jax.decoding import loop as loop_module
from aromni_jax.errors import UserError
from aromni_jax.model import init_params
from aromni_jax.parallel import make_mesh
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.compact(text_pieces=75, image_codes=6, image_tokens=3, speech_codes=7)
CONFIG = ModelConfig(
    vocab_size=V.size, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, max_positions=512, norm_eps=4e-5
)
PICTURE = [V.boi, *V.image_ids([0, 1, 2]).tolist(), V.eoi]
SAMPLED = dict.fromkeys(State, Policy(temperature=1.3, top_p=0.95, repetition_penalty=1.2))


@pytest.fixture(scope="module")
def model():
    params = init_params(CONFIG, jax.random.PRNGKey(3))
    params["head"]["kernel"] *= 30.0  # choices so clear that rounding never decides one
    return types.SimpleNamespace(params=params, config=CONFIG, vocabulary=V)


def said(seed, length):
    return np.random.default_rng(seed).integers(V.text.start, V.text.stop, length).tolist()


def requests(prompts):
    """Two side rows for three requests: six rows, which no mesh of four divides."""
    how = [
        {"first": State.TEXT, "policies": SAMPLED, "seed": 5},
        {"first": State.IMAGE, "guidance": Guidance(3.0, 1.5), "max_spans": 1},
        {"first": State.SPEECH},
    ]
    return [Request(prompt_tokens=prompt, max_new_tokens=20, **more) for prompt, more in zip(prompts, how, strict=True)]


PROMPTS = [[V.bos, *said(0, 4)], [V.bos, *said(1, 9), *PICTURE], [V.bos, *said(2, 2)]]


def dialog(engine):
    """Tokens of two turns."""
    session = engine.session()
    first = [result.tokens.tolist() for result in engine.generate(requests(PROMPTS), session)]
    follow = [[*prompt, *tokens[:-1], V.eom, *said(9, 3)] for prompt, tokens in zip(PROMPTS, first, strict=True)]
    second = engine.generate(requests(follow), session)
    assert all(result.usage.reused_tokens for result in second)
    return [*first, *(result.tokens.tolist() for result in second)]


@pytest.fixture
def carries(monkeypatch):
    """What goes into each chunk and comes out of it."""
    seen = []

    def spy(params, carry, inputs, most, **static):
        after, told = inner(params, carry, inputs, most, **static)
        seen.append((params, carry, after))
        return after, told

    inner = loop_module.decode
    monkeypatch.setattr("aromni_jax.decoding.pool.decode", spy)
    return seen


def test_a_mesh_decodes_the_same_tokens(model, carries, monkeypatch):
    """Two turns, with guidance and a growing int8 cache; all stays split and is donated, nothing is compiled twice."""
    monkeypatch.setattr("aromni_jax.decoding.session.SMALLEST_CACHE", 32)
    expected = dialog(Engine(model, chunk=8, cache_dtype="int8"))
    carries.clear()
    before = loop_module.decode._cache_size()
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    assert dialog(Engine(model, chunk=8, cache_dtype="int8", mesh=mesh)) == expected
    rows = ("replica", "fsdp")
    for params, given, left in carries:
        assert given.cache.layers[0].keys_bkte.is_deleted() and given.seen_bv.is_deleted()
        assert [array.dtype.name for array in jax.tree.leaves(left.cache.layers[0])] == ["int8"] * 2 + ["float32"] * 2
        for array in jax.tree.leaves(left.cache.layers[0]):
            assert array.sharding.is_equivalent_to(NamedSharding(mesh, P(rows, "tensor")), array.ndim)
        assert params["layers"][1]["ffn"]["gate"].sharding.spec == P("fsdp", "tensor"), "split layers stay split"
        assert left.seen_bv.sharding.spec == P(rows, "tensor") and left.hidden_rd.sharding.spec[0] == rows
    shapes = {(given.hidden_rd.shape, given.cache.length) for _, given, _ in carries}
    assert len(shapes) > 1 and loop_module.decode._cache_size() - before == len(shapes)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(fsdp=2, tensor=4), "tensor=4 does not divide the model's 2 key/value heads"),
        (MeshConfig(fsdp=4, context=2), "context=2, but decoding splits no sequence"),
    ],
)
def test_meshes_that_would_waste_memory_are_refused(model, mesh, message):
    with pytest.raises(UserError, match=message):
        Engine(model, mesh=make_mesh(mesh))


def test_an_unknown_cache_is_refused(model):
    with pytest.raises(UserError, match="cache dtype 'int4': use one of float32, bfloat16, int8"):
        Engine(model, cache_dtype="int4")


def test_few_dialogs_on_a_mesh_go_on_from_their_cache(model, monkeypatch):
    """One, where rows are filled up to four."""
    engine, left = Engine(model, mesh=make_mesh(MeshConfig(fsdp=4, tensor=2))), object()

    class Found(Exception):
        pass

    def begin(rows, *_):
        raise Found(rows is left)

    monkeypatch.setattr("aromni_jax.decoding.pool.begin", begin)
    session = engine.session()
    session.put(0, left)
    with pytest.raises(Found, match="True"):
        engine.generate(requests(PROMPTS)[:1], session)


def test_requests_come_and_go_on_a_mesh(model):
    """Three of them on two seats, the last guided by two side rows; rows are filled up to what the devices divide."""
    how = [(0, 20), (2, 12), (1, 20)]
    batch = [dataclasses.replace(requests(PROMPTS)[kind], max_new_tokens=limit) for kind, limit in how]
    expected = [Engine(model).generate([one])[0].tokens.tolist() for one in batch]
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    engine = Engine(model, chunk=8, max_batch=2, mesh=mesh)
    results = {event.id: event.result for event in engine.stream(
        dataclasses.replace(one, id=str(n)) for n, one in enumerate(batch)
    ) if isinstance(event, Done)}  # fmt: skip
    assert [results[str(n)].tokens.tolist() for n in range(3)] == expected
