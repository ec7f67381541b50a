"""Requests that come and go while others are decoded, against the same requests decoded alone."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.config import ModelConfig
from aromni_jax.decoding import (
    Done,
    Engine,
    Grammar,
    Guidance,
    Request,
    RequestQueue,
    State,
)
from aromni_jax.decoding import loop as loop_module
from aromni_jax.decoding import pool as pool_module
from aromni_jax.decoding.seats import Seats
from aromni_jax.decoding.session import power_of_two
from aromni_jax.errors import UserError
from aromni_jax.model import KVCache, split_layers
from aromni_jax.vocabulary import JointVocabulary
from tests.decoding.clear_model import SAMPLED, clear_model

V = JointVocabulary.compact(text_pieces=64, image_codes=6, image_tokens=4, speech_codes=7)
CONFIG = ModelConfig(
    vocab_size=V.size, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, max_positions=128, norm_eps=4e-5
)
PICTURE = [V.boi, *V.image_ids([0, 1, 2, 3]).tolist(), V.eoi]
PROGRAMS = ("prefill", "decode", "join", "repack", "grow", "vacant", "empty")


@pytest.fixture(scope="module")
def model():
    return clear_model(CONFIG, V, seed=5)


@pytest.fixture
def even_chunks(monkeypatch):
    """All chunks of one size, for tests that count them."""
    monkeypatch.setattr(pool_module, "_FIRST_STEPS", 1 << 10)


def request(n: int, seed: int = 0) -> Request:
    """Of seven kinds: lengths, policies, tasks, with one, two and three rows of the cache."""
    rng = np.random.default_rng((n, seed))
    kind, words = n % 7, rng.integers(V.text.start, V.text.stop, [3, 9, 20, 5, 2, 14, 7][n % 7]).tolist()
    drawn = kind in (3, 5)
    return Request(
        id=f"r{n}",
        prompt_tokens=[V.bos, *words, *(PICTURE if kind == 5 else []), V.eoh],
        max_new_tokens=[60, 9, 30, 12, 40, 25, 17][kind] + int(rng.integers(3)),
        first=State.IMAGE if drawn else State.SPEECH if kind == 1 else State.TEXT if kind == 2 else None,
        guidance=Guidance(3.0, 1.5) if drawn else None,
        policies=SAMPLED if kind in (4, 5) else {},
        seed=n + seed,
    )


@pytest.fixture(scope="module")
def alone(model):
    """Tokens of each request decoded by itself."""
    engine, known = Engine(model), {}

    def decode(wanted):
        if (wanted.id, wanted.seed) not in known:
            known[wanted.id, wanted.seed] = engine.generate([wanted])[0].tokens.tolist()
        return known[wanted.id, wanted.seed]

    return decode


def serve(engine, requests, at_events, cancel=()):
    """Results by id; request n is handed in when so many events have been seen, and `cancel` (events, id) likewise."""
    queue, results = RequestQueue(), {}
    coming = sorted(zip(at_events, range(len(requests)), strict=True))
    cancel = sorted(cancel)

    def hand_in(seen):
        while coming and coming[0][0] <= seen:
            queue.submit(requests[coming.pop(0)[1]])
        while cancel and cancel[0][0] <= seen:
            assert queue.cancel(cancel.pop(0)[1])
        if not coming:
            queue.close()

    hand_in(0)
    for seen, event in enumerate(engine.stream(queue), 1):
        if isinstance(event, Done):
            assert event.id not in results
            results[event.id] = event.result
        if coming and len(results) == len(requests) - len(coming):
            seen = coming[0][0]  # else nothing would ever happen again
        hand_in(seen)
    return results


@pytest.fixture
def pools(monkeypatch):
    """All that are made."""
    made = []
    inner = pool_module.Pool.__init__
    monkeypatch.setattr(pool_module.Pool, "__init__", lambda self, *a, **k: made.append(self) or inner(self, *a, **k))
    return made


def programs():
    return {name: getattr(loop_module, name)._cache_size() for name in PROGRAMS}


@pytest.fixture
def caches(monkeypatch):
    """(rows, slots) of the cache of every chunk."""
    seen = []
    inner = pool_module.decode
    monkeypatch.setattr(
        pool_module,
        "decode",
        lambda p, carry, *a, **k: seen.append(carry.cache.segments_bt.shape) or inner(p, carry, *a, **k),
    )
    return seen


@pytest.mark.usefixtures("even_chunks")
def test_requests_that_come_and_go_equal_requests_alone(model, alone, caches):
    """Greedy, sampled, guided with one and two side rows, all tasks; more requests than seats, twice the cache's
    slots; and the same traffic with other values needs no further program."""
    engine = Engine(model, chunk=8, max_batch=4)
    for seed in (0, 1):
        requests = [request(n, seed) for n in range(21)]
        results = serve(engine, requests, at_events=[0, 0, 1, 1, 3, *range(4, 36, 2)])
        for wanted in requests:
            assert results[wanted.id].tokens.tolist() == alone(wanted), wanted.id
        if not seed:
            before = programs()
            assert len({rows for rows, _ in caches}) > 1, "side rows came"
            steps, slots = 8 * len(caches), max(slots for _, slots in caches)
            assert slots < 3 * CONFIG.max_positions and steps > 1.5 * slots, "the cache was compacted"
    assert programs() == before


@pytest.mark.usefixtures("even_chunks")
def test_cancelled_requests_leave_at_once_and_the_others_do_not_notice(model, alone):
    """One that runs, with side rows; one that waits, behind those that run; one that is over already."""
    engine = Engine(model, chunk=8, max_batch=2)
    requests = [request(n) for n in (0, 3, 4, 5, 6)]
    results = serve(engine, requests, at_events=[0] * 5, cancel=[(1, "r0"), (1, "r5")])
    stopped, withdrawn = results["r0"], results["r5"]
    assert stopped.finish == withdrawn.finish == "cancelled" and withdrawn.tokens.size == 0
    assert 8 <= len(stopped.tokens) < len(alone(requests[0]))
    assert stopped.tokens.tolist() == alone(requests[0])[: len(stopped.tokens)]
    for wanted in requests:
        if wanted.id not in ("r0", "r5"):
            assert results[wanted.id].tokens.tolist() == alone(wanted)
            assert results[wanted.id].finish in ("stop", "length")


@pytest.mark.parametrize("kind", [3, 5])
@pytest.mark.usefixtures("even_chunks")
def test_guided_rows_may_be_cancelled(model, alone, kind):
    """Their side rows go too, and serve the next ones."""
    requests = [request(0), request(kind), request(kind + 7), request(kind + 14)]
    results = serve(Engine(model, chunk=4, max_batch=2), requests, at_events=[0] * 4, cancel=[(1, f"r{kind}")])
    assert results[f"r{kind}"].finish == "cancelled"
    for wanted in requests:
        if wanted.id != f"r{kind}":
            assert results[wanted.id].tokens.tolist() == alone(wanted)


@pytest.mark.usefixtures("even_chunks")
def test_first_come_first_served(model, monkeypatch):
    """Also a request of three rows of the cache among short ones; and a long one does not keep others waiting."""
    order = []
    inner = Seats.take
    monkeypatch.setattr(
        Seats, "take", lambda self, rows, *a: order.extend(row.request.id for row in rows) or inner(self, rows, *a)
    )
    requests = [request(0), *(request(n) for n in (1, 3, 5, 6, 8, 12, 10, 15))]
    ends = serve(Engine(model, chunk=8, max_batch=2), requests, at_events=[0] * len(requests))
    assert order == [wanted.id for wanted in requests]
    assert list(ends).index("r0") > 1, "others came and went beside the longest"
    assert ends["r15"].usage.queued > ends["r0"].usage.queued + ends["r0"].usage.total / 2


def test_any_iterable_is_asked_when_there_is_room(model, alone):
    requests, asked = [request(n) for n in (0, 1, 6, 8, 13)], []

    def source():
        for wanted in requests:
            asked.append(wanted.id)
            yield wanted

    done = []
    for event in Engine(model, chunk=8, max_batch=2).stream(source()):
        if isinstance(event, Done):
            done.append(event.id)
            assert event.result.tokens.tolist() == alone(requests[int([r.id for r in requests].index(event.id))])
        assert len(asked) <= len(done) + 2
    assert sorted(done) == sorted(asked)


def test_results_come_as_requests_end(model, alone, caches):
    """Refused ones too; and no more rows are decoded than are asked for."""
    requests = [request(n) for n in (0, 1, 6, 8, 13)]
    bad = Request(id="bad", prompt_tokens=[])
    engine = Engine(model, chunk=8, max_batch=4)
    results = list(engine.results(iter([*requests[:2], bad, *requests[2:]]), at_once=2))
    assert {rows for rows, _ in caches} == {2}
    assert {result.id for result in results} == {"bad", *(wanted.id for wanted in requests)}
    assert [result.id for result in results].index("r0") > 0, "others came and went beside the longest"
    got = {result.id: result for result in results}
    assert got["bad"].finish == "refused" and got["bad"].error
    for wanted in requests:
        assert got[wanted.id].tokens.tolist() == alone(wanted)


def test_bad_requests_of_a_queue_are_refused_one_by_one(model, alone):
    good = request(1)
    bad = {
        "far": ({"prompt_tokens": [V.size]}, ".*ids outside"),
        "long": ({"prompt_tokens": [V.bos] * 200}, ".*200 tokens"),
        "none": ({"prompt_tokens": None}, "the prompt must be a list of token ids"),
        "uneven": ({"prompt_tokens": [V.bos, [V.eoh]]}, "the prompt must be a list of token ids"),
        "words": ({"prompt_tokens": [V.bos], "max_new_tokens": "7"}, "max_new_tokens must be a whole number, got '7'"),
    }
    requests = [Request(id=name, **fields) for name, (fields, _) in bad.items()]
    results = serve(
        Engine(model, chunk=8, max_batch=2), [requests[0], good, *requests[1:]], at_events=[0, 0, 1, 1, 1, 1]
    )
    assert results["r1"].tokens.tolist() == alone(good) and results["r1"].error is None
    for name, (_, message) in bad.items():
        assert results[name].finish == "refused" and results[name].tokens.size == 0
        assert results[name].usage.tokens_per_second == 0 and results[name].usage.real_time_factor is None
        assert re.match(f"request {name}: {message}", results[name].error)


WRONG_KINDS = [
    ("prompt_tokens", np.asarray(5), "the prompt must be a list of token ids"),
    ("max_new_tokens", "7", "max_new_tokens must be a whole number, got '7'"),
    ("max_spans", -1, "max_spans must be a whole number, at least 0, got -1"),
    ("seed", True, "seed must be a whole number, got True"),
    ("allowed", None, "allowed must be a set of State, got None"),
    ("allowed", {"text"}, "allowed must be a set of State, got {'text'}"),
    ("first", "image", "first must be a State other than DONE, or None, got 'image'"),
    ("first", State.DONE, "first must be a State other than DONE, or None, got <State.DONE: 4>"),
    ("policies", None, "policies must be a mapping of State to Policy, got None"),
    ("policies", {State.TEXT: "x"}, "policies must be a mapping of State to Policy, got {<State.TEXT: 0>: 'x'}"),
    ("policies", np.zeros((2, 1)), r"policies must be a mapping of State to Policy, got array\(\[\[0.\], \[0.\]\]\)"),
    ("guidance", "x", "guidance must be a Guidance or None, got 'x'"),
    ("guidance", Guidance(negative=[V.bos, [V.eoh]]), "negative prompt: must be a list of token ids"),
]


def wrong_kind(name, value, **others):
    return Request(**{"prompt_tokens": [V.bos], "first": State.IMAGE, name: value, **others})


def test_fields_of_the_wrong_kind_are_refused_one_by_one(model, alone):
    good = request(1)
    bad = [wrong_kind(name, value, id=f"bad{n}") for n, (name, value, _) in enumerate(WRONG_KINDS)]
    bad.append(wrong_kind("id", ["a"]))
    results = list(Engine(model, max_batch=2).results(iter([good, *bad])))
    assert sorted(str(result.id) for result in results) == sorted(str(wanted.id) for wanted in [good, *bad])
    for result in results:
        if result.id == "r1":
            assert result.tokens.tolist() == alone(good)
        elif isinstance(result.id, list):
            assert result.error == f"request {len(bad)}: id must be a string, got ['a']"
        else:
            *_, message = WRONG_KINDS[int(result.id.removeprefix("bad"))]
            assert result.finish == "refused" and re.match(f"request {result.id}: {message}", result.error)
            assert "\n" not in result.error


@pytest.mark.parametrize(("name", "value", "message"), WRONG_KINDS)
def test_fields_of_the_wrong_kind_in_a_list(model, name, value, message):
    with pytest.raises(UserError, match=f"request 1: {message}"):
        Engine(model).generate([request(1), wrong_kind(name, value)])


def test_a_session_needs_a_list(model):
    engine = Engine(model)
    with pytest.raises(UserError, match="a session is for a list"):
        next(engine.stream(iter([request(1)]), engine.session()))


@pytest.mark.usefixtures("even_chunks")
def test_the_next_chunk_is_asked_for_before_the_last_is_read(model, monkeypatch):
    order = []
    decode, read = pool_module.decode, pool_module.np.asarray

    def spy(array, *args, **kwargs):
        if isinstance(array, jax.Array) and array.ndim == 3:
            order.append("read")
        return read(array, *args, **kwargs)

    monkeypatch.setattr(pool_module, "decode", lambda *a, **k: order.append("ask") or decode(*a, **k))
    monkeypatch.setattr(pool_module, "np", types.SimpleNamespace(**{**vars(np), "asarray": spy}))
    long = Request(prompt_tokens=[V.bos], max_new_tokens=32, first=State.SPEECH, max_spans=1)
    tokens = Engine(model, chunk=8).generate([long])[0].tokens
    assert len(tokens) > 16, "else there is nothing to run ahead of"
    assert order[:4] == ["ask", "ask", "read", "ask"] and order.count("ask") == order.count("read") == 4


@pytest.mark.usefixtures("even_chunks")
def test_the_host_knows_how_far_the_cache_is_written(model, alone, pools):
    """Also when a request comes behind a chunk that ends before its last step."""
    first, second = request(1), request(2)
    assert len(alone(first)) == 9, (
        "it ends in the first step of its second chunk, which is on its way at the first event"
    )
    pools.clear()
    results = serve(Engine(model, chunk=8, max_batch=2), [first, second], at_events=[0, 1])
    assert results["r2"].tokens.tolist() == alone(second)
    rows = pools[0].leave()
    assert int(rows.cache.index) == rows.used


def test_a_chunk_of_rows_that_are_done_takes_no_step(model):
    grammar = Grammar(V)
    carry = loop_module.vacant(KVCache.create(CONFIG, 2, 128), batch=2, config=CONFIG, grammar=grammar)
    # Rows that go on, were it not that nobody sits there any more.
    going_on = dataclasses.replace(carry.grammar, state_b=jnp.full(2, State.TEXT))
    carry, inputs = dataclasses.replace(carry, grammar=going_on), Seats(2, power_of_two).inputs(grammar)
    params = split_layers(model.params)
    after, told = loop_module.decode(
        params, carry, inputs, jnp.int32(8), config=CONFIG, grammar=grammar, steps=8, guided=False
    )
    assert int(after.cache.index) == 0 and (np.asarray(told)[1:] == State.DONE).all()
    assert (np.asarray(told)[0] == V.pad).all()


def test_closing_the_stream_closes_the_queue(model):
    queue = RequestQueue()
    for n in range(3):
        queue.submit(request(n))
    events = Engine(model, chunk=8, max_batch=2).stream(queue)
    next(events)
    events.close()
    with pytest.raises(UserError, match="the queue is closed"):
        queue.submit(request(9))


def test_a_newcomer_waits_for_few_steps(model, monkeypatch):
    """The first chunk after somebody came is short, the next ones grow again; nothing is compiled for it."""
    request = Request(prompt_tokens=[V.bos, V.text.start], max_new_tokens=60, allowed=frozenset({State.TEXT}))
    engine = Engine(model, chunk=16, max_batch=2)
    with monkeypatch.context() as even:
        even.setattr(pool_module, "_FIRST_STEPS", 16)
        expected = engine.generate([request])[0].tokens.tolist()
    assert len(expected) > 4 + 8 + 16, "of several chunks"
    asked = []
    decode = pool_module.decode
    monkeypatch.setattr(pool_module, "decode", lambda *a, **k: asked.append(int(a[3])) or decode(*a, **k))
    before = decode._cache_size()
    assert engine.generate([request])[0].tokens.tolist() == expected
    assert asked[:4] == [4, 8, 16, 16] and decode._cache_size() == before
