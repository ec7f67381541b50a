"""The released inference code's rules (SPEC 6.3 to 6.7), for comparison with it; `Engine(grammar="reference")`.

What differs from `Grammar`: in text everything but image codes is open (nothing keeps a speech span clean, and boi is
open even to a request without pictures, where it starts none), a row at its limit is cut wherever it stands, and two
text policies take turns: TRANSCRIPT stands for the greedy mode, TEXT for the sampling mode. A request whose `first`
is TRANSCRIPT has greedy text by default, one whose `first` is IMAGE begins with boi. Rows stop one by one; the
reference runs on until every row has had the same end token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from aromni_jax.decoding.grammar import Grammar, GrammarState, Limits, Rules, State, initial_state, step, within
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary


def reference_mode(vocabulary: JointVocabulary, previous_b: jax.Array, greedy_b: jax.Array) -> jax.Array:
    """bool [B]: does each row choose greedily now? (SPEC 6.6)

    Args:
      previous_b: int [B], last token of each row.
      greedy_b: bool [B], the mode so far; at the start of a text part the request's default. Ins and boa switch to
        greedy, res and eoa to sampling, whatever the default is: after the eoa of a greedy TTS the reference samples.
    """
    v = vocabulary
    on_b = (previous_b == v.ins) | (previous_b == v.boa)
    off_b = (previous_b == v.res) | (previous_b == v.eoa)
    return jnp.where(on_b, True, jnp.where(off_b, False, greedy_b))


class ReferenceGrammar(Grammar):
    """Same interface as `Grammar`."""

    def check(self, limits: Limits, where: str) -> None:
        """Any room will do."""
        if limits.max_new_tokens < 1:
            raise UserError(f"{where}: max_new_tokens is {limits.max_new_tokens}, it must be at least 1")

    def start(self, rules: Rules, idle_b: jax.Array) -> GrammarState:
        """In the request's default mode."""
        return initial_state(_default_mode(rules), idle_b)

    def allowed(self, grammar: GrammarState, rules: Rules) -> jax.Array:
        """SPEC 6.5 steps 1 and 2; bool [B, V]."""
        v = self.vocabulary
        ids = jnp.arange(v.size)[None]
        code = within(v.image, ids)
        left_b = rules.limit_b - grammar.emitted_b
        boi_b = ~rules.allowed_bs[:, State.IMAGE] | (left_b > v.image_tokens + 2)
        text = ~code & ((ids != v.boi) | boi_b[:, None])
        first_b = (rules.first_b == State.IMAGE) & (grammar.emitted_b == 0)
        text = jnp.where(first_b[:, None], ids == v.boi, text)
        image = jnp.where((grammar.span_b < v.image_tokens)[:, None], code, ids == v.eoi)
        inside = jnp.where((grammar.state_b == State.IMAGE)[:, None], image, text)
        return jnp.where((grammar.state_b == State.DONE)[:, None], ids == v.pad, inside)

    def advance(self, grammar: GrammarState, rules: Rules, tokens_b: jax.Array) -> GrammarState:
        """The selector's modes; after a picture the default mode comes back."""
        v, old_b = self.vocabulary, grammar.state_b
        greedy_b = reference_mode(v, tokens_b, old_b == State.TRANSCRIPT)
        text_b = jnp.where(greedy_b, State.TRANSCRIPT, State.TEXT)
        new_b = jnp.where(old_b == State.IMAGE, State.IMAGE, text_b)
        new_b = jnp.where((old_b == State.IMAGE) & (tokens_b == v.eoi), _default_mode(rules), new_b)
        drawn_b = rules.allowed_bs[:, State.IMAGE] & (old_b != State.IMAGE) & (tokens_b == v.boi)
        new_b = jnp.where(drawn_b, State.IMAGE, new_b)
        ended_b = (tokens_b == v.eos) | (tokens_b == v.eom) | (grammar.emitted_b + 1 >= rules.limit_b)
        return step(grammar, jnp.where(ended_b, State.DONE, new_b), v, tokens_b)


def _default_mode(rules: Rules) -> jax.Array:
    return jnp.where(rules.first_b == State.TRANSCRIPT, State.TRANSCRIPT, State.TEXT)
