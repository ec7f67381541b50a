"""The finite-state machine that keeps every output well-formed, as arrays in the carry of the decoding scan.

TEXT --boa--> SPEECH --eoa--> TEXT,  TEXT --boi--> IMAGE --(image_tokens codes, eoi)--> TEXT,
first token ins: TRANSCRIPT --res--> TEXT,  TEXT --eos|eom--> DONE.

A token is open only if the row can still finish inside its limit after it: close the span it is in, then stop. So a
span never starts without room, speech is closed in time, and the last token of every row is eos or eom.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax.errors import UserError
from aromni_jax.vocabulary import IdRange, JointVocabulary


class State(enum.IntEnum):
    """Where a row stands; TRANSCRIPT is the text between ins and res of a chat answer."""

    TEXT = 0
    TRANSCRIPT = 1
    SPEECH = 2
    IMAGE = 3
    DONE = 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may emit.

    Attributes:
      max_new_tokens: tokens to emit at most, the closing eos or eom included.
      allowed: which of TEXT, TRANSCRIPT, SPEECH, IMAGE may occur.
      first: the state that the first token must enter (SPEECH: boa, IMAGE: boi, TRANSCRIPT: ins, TEXT: a text piece);
        None leaves it free.
      max_spans: number of speech and image spans together.
    """

    max_new_tokens: int
    allowed: frozenset[State] = frozenset({State.TEXT, State.TRANSCRIPT, State.SPEECH, State.IMAGE})
    first: State | None = None
    max_spans: int = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """`Limits` of a batch as arrays: `limit_b`, `first_b` (-1: free), `max_spans_b` int32; `allowed_bs` bool [B, 4]."""

    limit_b: jax.Array
    first_b: jax.Array
    max_spans_b: jax.Array
    allowed_bs: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GrammarState:
    """The machine's part of the carry, int32 [B] each.

    Attributes:
      state_b: `State`.
      span_b: codes emitted in the current speech or image span.
      emitted_b: tokens emitted so far.
      spans_b: spans opened so far.
    """

    state_b: jax.Array
    span_b: jax.Array
    emitted_b: jax.Array
    spans_b: jax.Array


_SLOTS = 7  # the most kinds of token that one state knows


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The machine of one vocabulary; hashable, so it can be a static argument of a jitted function."""

    vocabulary: JointVocabulary

    def ranges(self) -> np.ndarray:
        """Ids of each kind of token, int32 [states, slots, 2], half-open; unused slots are empty."""
        v = self.vocabulary

        def one(token: int) -> tuple[int, int]:
            return token, token + 1

        text = (v.text.start, v.text.stop)
        table = np.zeros((len(State), _SLOTS, 2), np.int32)
        rows = {
            State.TEXT: [text, one(v.boa), one(v.boi), one(v.ins), one(v.eos), one(v.eom)],
            State.TRANSCRIPT: [text, one(v.res)],
            State.SPEECH: [(v.speech.start, v.speech.stop), one(v.eoa)],
            State.IMAGE: [(v.image.start, v.image.stop), one(v.eoi)],
            State.DONE: [one(v.pad)],
        }
        for state, ids in rows.items():
            table[state, : len(ids)] = ids
        return table

    def need(self, state: State) -> int:
        """Fewest tokens that finish a row standing at the start of `state`, eos included."""
        codes = {State.SPEECH: 1, State.IMAGE: self.vocabulary.image_tokens}.get(state, 0)
        return {State.TEXT: 1, State.DONE: 0}.get(state, codes + 2)

    def most_pictures(self, limits: Limits) -> int:
        """Pictures that a row can draw."""
        room = max(1, limits.max_new_tokens // (self.vocabulary.image_tokens + 2))
        return min(limits.max_spans, room) if State.IMAGE in limits.allowed else 0

    def check(self, limits: Limits, where: str) -> None:
        """`UserError`, prefixed by `where`, if no output could meet the limits."""
        if limits.first is not None and limits.first not in limits.allowed:
            raise UserError(f"{where}: must begin with {limits.first.name.lower()}, which is not allowed")
        least = 1 if limits.first is None else 1 + self.need(limits.first)
        if limits.first in (State.SPEECH, State.IMAGE) and limits.max_spans < 1:
            raise UserError(f"{where}: must begin with {limits.first.name.lower()}, but max_spans is 0")
        if limits.max_new_tokens < least:
            what = "an answer" if limits.first is None else f"an answer that begins with {limits.first.name.lower()}"
            raise UserError(
                f"{where}: {what} needs room for {least} tokens, but max_new_tokens is {limits.max_new_tokens}"
            )

    def rules(self, limits: Sequence[Limits]) -> Rules:
        """Arrays for a batch; each of `limits` must pass `check`."""
        states = list(State)[: State.DONE]
        return Rules(
            limit_b=jnp.asarray([limit.max_new_tokens for limit in limits], jnp.int32),
            first_b=jnp.asarray([-1 if limit.first is None else limit.first for limit in limits], jnp.int32),
            max_spans_b=jnp.asarray([min(limit.max_spans, limit.max_new_tokens) for limit in limits], jnp.int32),
            allowed_bs=jnp.asarray([[state in limit.allowed for state in states] for limit in limits], bool),
        )

    def start(self, rules: Rules, idle_b: jax.Array) -> GrammarState:
        """State before the first token; rows flagged in `idle_b` (bool [B], padding of the batch) never emit."""
        return initial_state(jnp.full_like(rules.limit_b, State.TEXT), idle_b)

    def open_slots(self, grammar: GrammarState, rules: Rules) -> jax.Array:
        """Which kinds of token the rows may emit now, bool [B, slots], in the order of `ranges`."""
        n = self.vocabulary.image_tokens
        after = rules.limit_b - grammar.emitted_b - 1  # room that remains once this token is out
        allow = {state: rules.allowed_bs[:, state] for state in list(State)[: State.DONE]}
        more = grammar.spans_b < rules.max_spans_b
        fresh = grammar.emitted_b == 0
        bound = fresh & (rules.first_b >= 0)
        yes, no = jnp.ones_like(fresh), jnp.zeros_like(fresh)

        def opens(state: State) -> jax.Array:
            """May the token that enters `state` be emitted, as far as the first-token rule and the room go?"""
            return allow[state] & (~bound | (rules.first_b == state)) & (after >= self.need(state))

        stop = ~bound
        slots = {
            State.TEXT: [
                opens(State.TEXT),
                opens(State.SPEECH) & more,
                opens(State.IMAGE) & more,
                opens(State.TRANSCRIPT) & fresh,
                stop,
                stop,
            ],
            State.TRANSCRIPT: [after >= 2, yes],
            State.SPEECH: [after >= 2, grammar.span_b >= 1],
            State.IMAGE: [grammar.span_b < n, grammar.span_b == n],
            State.DONE: [yes],
        }
        table = jnp.stack([jnp.stack(row + [no] * (_SLOTS - len(row)), -1) for row in slots.values()])
        return table[grammar.state_b, jnp.arange(fresh.shape[0])]

    def allowed(self, grammar: GrammarState, rules: Rules) -> jax.Array:
        """Which ids the rows may emit now, bool [B, V]: range tests, never a table over the vocabulary."""
        ranges = jnp.asarray(self.ranges())[grammar.state_b]  # [B, slots, 2]
        open_bk = self.open_slots(grammar, rules)
        ids = jnp.arange(self.vocabulary.size)[None]
        allowed = jnp.zeros((open_bk.shape[0], self.vocabulary.size), bool)
        for k in range(_SLOTS):
            inside = (ids >= ranges[:, k, :1]) & (ids < ranges[:, k, 1:])
            allowed |= inside & open_bk[:, k : k + 1]
        return allowed

    def advance(self, grammar: GrammarState, rules: Rules, tokens_b: jax.Array) -> GrammarState:
        """State after `tokens_b` (int [B]) have been emitted; rows that are DONE stay as they are."""
        del rules  # what may be emitted is settled by `allowed`
        v = self.vocabulary
        old = grammar.state_b
        new = old
        for token, state in (
            (v.boa, State.SPEECH),
            (v.boi, State.IMAGE),
            (v.ins, State.TRANSCRIPT),
            (v.eoa, State.TEXT),
            (v.eoi, State.TEXT),
            (v.res, State.TEXT),
            (v.eos, State.DONE),
            (v.eom, State.DONE),
        ):
            new = jnp.where(tokens_b == token, state, new)
        return step(grammar, new, self.vocabulary, tokens_b)


def within(span: IdRange, ids: jax.Array) -> jax.Array:
    """bool, shape of `ids`: which lie in the range."""
    return (ids >= span.start) & (ids < span.stop)


def initial_state(state_b: jax.Array, idle_b: jax.Array) -> GrammarState:
    """Nothing emitted yet, in `state_b`; idle rows are DONE."""
    zero = jnp.zeros_like(state_b)
    return GrammarState(jnp.where(idle_b, State.DONE, state_b), zero, zero, zero)


def step(grammar: GrammarState, new_b: jax.Array, vocabulary: JointVocabulary, tokens_b: jax.Array) -> GrammarState:
    """Move to `new_b` and keep the counts; rows that are DONE stay as they are."""
    old_b = grammar.state_b
    live_b = old_b != State.DONE
    opened_b = (tokens_b == vocabulary.boa) | (tokens_b == vocabulary.boi)
    return GrammarState(
        state_b=jnp.where(live_b, new_b, old_b),
        span_b=jnp.where(new_b == old_b, grammar.span_b + 1, 0),
        emitted_b=grammar.emitted_b + live_b,
        spans_b=grammar.spans_b + (live_b & opened_b),
    )
