"""Calls that go on from an earlier call's cache, against calls that read everything anew."""

import contextlib
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.config import ModelConfig
from aromni_jax.decoding import Done, Engine, Guidance, Request, State, StateChange
from aromni_jax.decoding import loop as loop_module
from aromni_jax.decoding import pool as pool_module
from aromni_jax.decoding.guidance import Reads, follow
from aromni_jax.decoding.session import match
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary
from tests.decoding.clear_model import SAMPLED, clear_model

V = JointVocabulary.compact(text_pieces=64, image_codes=6, image_tokens=3, speech_codes=7)
CONFIG = ModelConfig(
    vocab_size=V.size, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, max_positions=512, norm_eps=3e-5
)
PICTURE = [V.boi, *V.image_ids([0, 1, 2]).tolist(), V.eoi]


@pytest.fixture(scope="module")
def model():
    return clear_model(CONFIG, V, seed=3)


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, chunk=8)


def said(seed: int, length: int, picture: bool = False) -> list[int]:
    """What a user adds."""
    words = np.random.default_rng(seed).integers(V.text.start, V.text.stop, length).tolist()
    return [*words, *(PICTURE if picture else []), V.eoh]


def openings() -> list[list[int]]:
    """First prompts of three dialogs; the last holds a picture."""
    return [[V.bos, *said(n, 3 + 7 * n, n == 2)] for n in range(3)]


def requests(prompts, turn=0):
    """Greedy, sampled, and guided: two or three rows for the last."""
    return [
        Request(
            prompt_tokens=prompt, max_new_tokens=9 + 4 * n + turn, seed=n + turn, policies=SAMPLED if n == 1 else {},
            guidance=Guidance(3.0, 1.5) if n == 2 else None, first=State.IMAGE if n == 2 else None,
        )
        for n, prompt in enumerate(prompts)
    ]  # fmt: skip


def closed(tokens: list[int]) -> list[int]:
    """An answer as it stands in the next prompt: eos has given way to eom (SPEC 6.9)."""
    return [*tokens[:-1], V.eom]


def consistent(session):
    """The host knows what is in every row of every cache."""
    for number in list(session._rows):
        rows = session.take(number)
        lengths = [len(tokens) for tokens in rows.held]
        np.testing.assert_array_equal((rows.cache.segments_bt != 0).sum(axis=1), lengths)
        np.testing.assert_array_equal(rows.cache.positions_b, lengths)
        assert int(rows.cache.index) == rows.used
        session.put(number, rows)


@pytest.fixture
def shapes(monkeypatch):
    """Shapes of all calls of the compiled programs: rows, slots read, slots of the cache; copies of a cache."""
    seen = {"prefill": [], "decode": [], "pick": []}

    def spy(name, module, shape):
        inner = getattr(loop_module, name)
        monkeypatch.setattr(f"aromni_jax.decoding.{module}.{name}", lambda *a, **k: note(inner, name, shape, a, k))

    def note(inner, name, shape, args, kwargs):
        seen[name].append(shape(*args, **kwargs))
        return inner(*args, **kwargs)

    spy("prefill", "pool", lambda params, cache, seen, tokens, *_, **__: (*tokens.shape, cache.length))
    spy("decode", "pool", lambda params, carry, *_, guided, **__: (len(carry.hidden_rd), carry.cache.length, guided))
    spy("pick", "session", lambda cache, rows, keep, length: (len(rows), cache.length, length))
    return seen


def test_turns_equal_turns_that_read_everything_anew(engine, shapes):
    """Also: the same programs serve turns of all lengths, one per bucket."""
    programs = {"prefill": loop_module.prefill, "decode": loop_module.decode, "pick": loop_module.pick}
    before = {name: program._cache_size() for name, program in programs.items()}
    session = engine.session()
    prompts = openings()
    reused, added, replaced = [], (), []
    for turn, lengths in enumerate([(5, 1, 9), (60, 12, 3), (2, 3, 4), (1, 1, 1)]):
        batch = requests(prompts, turn)
        results = engine.generate(batch, session)
        consistent(session)
        for result, plain in zip(results, engine.generate(batch), strict=True):
            assert result.tokens.tolist() == plain.tokens.tolist()
            assert plain.usage.reused_tokens == 0
        answers = [result.tokens.tolist() for result in results]
        usages = [result.usage for result in results]
        assert [usage.prompt_tokens for usage in usages] == [len(prompt) for prompt in prompts]
        if turn:
            # All but what is new: the eom in place of an eos, if it is one, and the user's words.
            assert [usage.fed_tokens for usage in usages] == [
                length + 1 + eos for length, eos in zip(added, replaced, strict=True)
            ]
        reused.append([usage.reused_tokens for usage in usages])
        added, replaced = lengths, [answer[-1] == V.eos for answer in answers]
        prompts = [
            [*prompt, *closed(answer), *said(10 * turn + n, lengths[n])]
            for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
    assert reused[0] == [0, 0, 0] and min(reused[1]) > 0
    assert len(shapes["pick"]) == 1, "one turn copies the cache, which had no room, the others do not"
    for name, program in programs.items():
        assert program._cache_size() - before[name] == len(set(shapes[name])), name
    assert len(shapes["prefill"]) > len(set(shapes["prefill"]))


def test_a_cancelled_turn_leaves_what_it_had_emitted(engine):
    batch = requests(openings())
    session = engine.session()
    with contextlib.closing(engine.stream(batch, session)) as events:
        assert isinstance(next(events), StateChange | Done)
    consistent(session)
    whole = engine.generate(batch, session)
    plain = engine.generate(batch)
    assert [row.tokens.tolist() for row in whole] == [row.tokens.tolist() for row in plain]
    assert max(row.usage.new_tokens for row in plain) > 8, "else nothing was cancelled"
    # The same prompts again: only their last tokens are read.
    assert [row.usage.fed_tokens for row in whole] == [1, 1, 1]


def test_nothing_stays_of_a_turn_that_was_interrupted_in_a_chunk(engine, monkeypatch):
    """Ctrl-C comes where the host waits for a chunk: the cache holds tokens that the host has not seen."""
    batch, session = requests(openings()), engine.session()
    asarray, coming = np.asarray, [KeyboardInterrupt]

    def interrupted(array, *args):
        if isinstance(array, jax.Array) and array.ndim == 3 and coming:
            raise coming.pop()
        return asarray(array, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pool_module, "np", types.SimpleNamespace(**{**vars(np), "asarray": interrupted}))
        engine.generate(batch, session)
    assert session.take(0) is None
    again, plain = engine.generate(batch, session), engine.generate(batch)
    assert [row.tokens.tolist() for row in again] == [row.tokens.tolist() for row in plain]


def test_dialogs_may_change_places_stop_and_split(engine, shapes):
    prompts = [[V.bos, *said(n, 6)] for n in range(3)]
    session = engine.session()
    answers = [result.tokens.tolist() for result in engine.generate(requests(prompts)[:2], session)]
    second, new = [*prompts[1], *closed(answers[1]), *said(9, 3)], prompts[2]
    batch = [
        Request(prompt_tokens=tokens, max_new_tokens=12, seed=n, policies=SAMPLED)
        for n, tokens in enumerate([new, second, second, second])
    ]
    results = engine.generate(batch, session)
    for result, plain in zip(results, engine.generate(batch), strict=True):
        assert result.tokens.tolist() == plain.tokens.tolist()
    assert [result.usage.reused_tokens > 6 for result in results] == [False, True, True, True]
    assert results[1].tokens.tolist() != results[2].tokens.tolist(), "one dialog, two draws"
    consistent(session)


def test_two_streams_of_one_session_do_not_share_a_cache(engine):
    batch = requests(openings())
    session = engine.session()
    engine.generate(batch, session)
    one, other = engine.stream(batch, session), engine.stream(batch, session)
    next(one)
    plain = [result.tokens.tolist() for result in engine.generate(batch)]
    for events in (other, one):
        done = {event.id or n: event.result for n, event in enumerate(events) if isinstance(event, Done)}
        assert sorted(row.tokens.tolist() for row in done.values()) == sorted(plain)
    consistent(session)


def test_several_batches_in_one_session(model):
    engine = Engine(model, chunk=8, max_batch=2)
    session = engine.session()
    prompts = [[V.bos, *said(n, 6)] for n in range(4)]
    batch = [Request(prompt_tokens=prompt, max_new_tokens=12) for prompt in prompts]
    answers = [result.tokens.tolist() for result in engine.generate(batch, session)]
    turn = [
        Request(prompt_tokens=[*prompt, *closed(answer), V.eoh], max_new_tokens=12)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    results = engine.generate(turn, session)
    assert all(result.usage.fed_tokens <= 2 for result in results)
    assert [r.tokens.tolist() for r in results] == [r.tokens.tolist() for r in engine.generate(turn)]
    rows = session.take(0)
    size = rows.cache.nbytes
    session.put(0, rows)
    del rows
    before = sum(array.nbytes for array in jax.live_arrays())
    del session
    assert sum(array.nbytes for array in jax.live_arrays()) <= before - 2 * size, "keys and values of two batches"


def test_a_session_of_another_engine(model, engine):
    with pytest.raises(UserError, match="another engine"):
        engine.generate(requests([[V.bos]] * 3), Engine(model).session())


def test_what_each_kind_of_row_takes_in():
    """Of two pictures in an answer, the row that knows only the picture being drawn holds the last (SPEC 6.7)."""
    first, second = V.image_ids([0, 1, 2]).tolist(), V.image_ids([3, 4, 5]).tolist()
    tokens = [V.text.start, V.boi, *first, V.eoi, V.text.start, V.boi, *second, V.eoi, V.eos]
    pictures = [V.boi, *first, V.eoi, V.boi, *second, V.eoi]
    assert follow(V, Reads.ALL, 2, [V.bos, V.eoh], tokens) == [V.bos, V.eoh, *tokens]
    assert follow(V, Reads.PICTURES, 1, [V.bos], tokens) == [V.bos, *pictures]
    one = follow(V, Reads.THIS_PICTURE, 1, [V.bos], tokens[:4])
    assert one == [V.bos, V.boi, *first[:2]]
    assert follow(V, Reads.THIS_PICTURE, 1, one, tokens[4:]) == [V.bos, V.boi, *second]


rows = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=4)


@given(rows, rows.filter(bool))
def test_match_finds_the_longest_common_beginning(held, prompts):
    source_r, keep_r = match(held, prompts)

    def shared(tokens, prompt):
        n = 0
        while n < min(len(tokens), len(prompt) - 1) and tokens[n] == prompt[n]:
            n += 1
        return n

    for n, prompt in enumerate(prompts):
        assert keep_r[n] == max((shared(tokens, prompt) for tokens in held), default=0)
        if keep_r[n]:
            assert shared(held[source_r[n]], prompt) == keep_r[n]
            assert source_r[n] == n or n >= len(held) or shared(held[n], prompt) < keep_r[n]
