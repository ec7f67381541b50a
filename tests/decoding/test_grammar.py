"""No ill-formed output, whatever the logits: random requests against a checker that shares no code with the machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.decoding import Limits, State
from aromni_jax.decoding.grammar import Grammar
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.compact(text_pieces=9, image_codes=5, image_tokens=4, speech_codes=6)
GRAMMAR = Grammar(V)
BATCH, STEPS = 16, 40


@jax.jit
def run(rules, logits_sbv):
    """Greedy decoding of given logits; tokens int32 [steps, B]."""

    def step(state, logits_bv):
        allowed = GRAMMAR.allowed(state, rules)
        tokens_b = jnp.argmax(jnp.where(allowed, logits_bv, -jnp.inf), axis=-1)
        return GRAMMAR.advance(state, rules, tokens_b), (tokens_b, allowed.any(axis=-1), state.state_b)

    return jax.lax.scan(step, GRAMMAR.start(rules, jnp.zeros(rules.limit_b.shape, bool)), logits_sbv)[1]


def check_answer(tokens: list[int], limits: Limits) -> None:
    """Reads an answer as a person would; AssertionError on the first fault."""
    V.check(tokens)
    assert 1 <= len(tokens) <= limits.max_new_tokens
    assert tokens[-1] in (V.eos, V.eom), "the answer is not ended"
    rest, spans, transcript, first = list(tokens[:-1]), 0, 0, None
    if rest and rest[0] == V.ins:
        transcript = rest.index(V.res)
        assert all(token in V.text for token in rest[1:transcript])
        rest, first = rest[transcript + 1 :], State.TRANSCRIPT
    while rest:
        head = rest.pop(0)
        if head == V.boi:
            body, rest = rest[: V.image_tokens], rest[V.image_tokens :]
            assert len(body) == V.image_tokens and all(token in V.image for token in body) and rest.pop(0) == V.eoi
            kind = State.IMAGE
        elif head == V.boa:
            end = rest.index(V.eoa)
            assert end >= 1 and all(token in V.speech for token in rest[:end])
            rest, kind = rest[end + 1 :], State.SPEECH
        else:
            assert head in V.text, f"stray token {head}"
            kind = State.TEXT
        spans += kind != State.TEXT
        assert kind in limits.allowed
        first = kind if first is None else first
    assert spans <= limits.max_spans
    if limits.first is not None:
        assert first == limits.first


@st.composite
def requests(draw):
    states = list(State)[: State.DONE]
    allowed = frozenset(draw(st.sets(st.sampled_from(states))))
    first = draw(st.sampled_from([None, *sorted(allowed)]))
    spans = draw(st.integers(1, 3))
    least = 1 if first is None else 1 + GRAMMAR.need(first)
    return Limits(draw(st.integers(least, STEPS)), allowed, first, spans)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), min_size=BATCH, max_size=BATCH), st.integers(0, 2**32 - 1), st.floats(0, 8))
def test_every_output_is_well_formed(limits, seed, lean):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(STEPS, BATCH, V.size)).astype(np.float32)
    # Lean towards starting spans, speaking on, and never stopping: the corners where room runs out.
    logits[..., [V.boa, V.boi, V.ins]] += lean * rng.normal()
    logits[..., [V.eos, V.eom, V.eoa, V.eoi, V.res]] -= lean
    tokens_sb, open_sb, states_sb = (np.asarray(x) for x in run(GRAMMAR.rules(limits), logits))
    assert open_sb.all(), "a row had no token to choose"
    for b, limit in enumerate(limits):
        live = states_sb[:, b] != State.DONE
        check_answer(tokens_sb[live, b].tolist(), limit)
        assert (tokens_sb[~live, b] == V.pad).all()


def test_the_checker_and_the_property_can_fail(monkeypatch):
    """Each fault that the machine prevents is one that the checker sees."""
    free = Limits(40, max_spans=1)
    picture = [V.boi, *V.image_ids([0, 1, 2, 3]), V.eoi]
    voice = [V.boa, *V.speech_ids([0, 1]), V.eoa]
    check_answer([*picture, V.eos], free)
    for bad in (
        [*picture],
        [*picture[:-2], V.eoi, V.eos],
        [V.boa, V.eoa, V.eos],
        [*picture, *voice, V.eos],
        [V.ins, V.text.start, V.eos],
        [V.res, V.eos],
        [V.pad, V.eos],
    ):
        with pytest.raises((AssertionError, UserError, ValueError)):
            check_answer(bad, free)
    # A machine that forgets the room for closing a span is caught.
    monkeypatch.setattr(Grammar, "need", lambda self, state: 1)
    rules = GRAMMAR.rules([Limits(5, first=State.IMAGE)])
    logits = np.zeros((STEPS, 1, V.size), np.float32)
    tokens, _, states = (np.asarray(x) for x in run.__wrapped__(rules, logits))
    with pytest.raises((AssertionError, UserError)):
        check_answer(tokens[states[:, 0] != State.DONE, 0].tolist(), Limits(5, first=State.IMAGE))


def test_full_size_vocabulary_by_ranges_only():
    grammar = Grammar(JointVocabulary.aromni())
    v = grammar.vocabulary
    assert grammar.ranges().shape == (len(State), 7, 2)
    rules = grammar.rules([Limits(1027, first=State.IMAGE), Limits(2000), Limits(1026)])
    allowed = np.asarray(grammar.allowed(grammar.start(rules, jnp.zeros(3, bool)), rules))
    assert np.flatnonzero(allowed[0]).tolist() == [v.boi]
    assert allowed[1, v.boi] and not allowed[2, v.boi], "1026 tokens have no room for boi, 1024 codes, eoi and eos"
    assert allowed[1].sum() == len(v.text) + 5


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(6, first=State.IMAGE), "needs room for 7 tokens, but max_new_tokens is 6"),
        (Limits(0), "an answer needs room for 1 tokens"),
        (Limits(40, frozenset({State.TEXT}), State.SPEECH), "must begin with speech, which is not allowed"),
        (Limits(40, first=State.SPEECH, max_spans=0), "max_spans is 0"),
    ],
)
def test_impossible_limits_are_refused(limits, message):
    with pytest.raises(UserError, match=message):
        GRAMMAR.check(limits, "request a")


def test_smallest_room_is_enough():
    for state in list(State)[: State.DONE]:
        limits = Limits(1 + GRAMMAR.need(state), first=state)
        GRAMMAR.check(limits, "request")
        tokens, _, states = (np.asarray(x) for x in run(GRAMMAR.rules([limits]), np.zeros((STEPS, 1, V.size))))
        check_answer(tokens[states[:, 0] != State.DONE, 0].tolist(), limits)


def test_more_spans_than_a_number_holds_are_as_good_as_any():
    assert GRAMMAR.rules([Limits(5, max_spans=2**40)]).max_spans_b.tolist() == [5]
