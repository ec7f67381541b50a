"""Choosing the next token: a policy per state of the grammar, as arrays, so new values never recompile.

Order of the steps as in the reference (SPEC 6.5): allowed ids, repetition penalty, temperature, top-k, top-p, choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax.decoding.grammar import State
from aromni_jax.decoding.selection import at_share, first_best, truncate
from aromni_jax.errors import UserError

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Policy:
    """How to pick a token in one state.

    Attributes:
      greedy: take the best token; temperature, top_k and top_p then play no part, the penalty does.
      temperature: divisor of the logits, > 0.
      top_k: keep the k best, 0 = all.
      top_p: keep the smallest set of best tokens whose probability reaches p; at least one.
      repetition_penalty: for ids already in the row: logit < 0 is multiplied, logit >= 0 divided by it; 1 = off.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, good in (
            ("temperature", 0 < self.temperature <= _LARGEST),
            ("top_k", 0 <= self.top_k < 2**31),
            ("top_p", 0 <= self.top_p <= 1),
            ("repetition_penalty", 0 < self.repetition_penalty <= _LARGEST),
        ):
            if not good:
                raise UserError(f"policy: {name} {getattr(self, name)} is out of range")


GREEDY = Policy(greedy=True)

# Ins and boa switch a row to greedy, res and eoa back to its own policy (SPEC 6.6): TRANSCRIPT and SPEECH are greedy
# unless the request says otherwise.
DEFAULT_POLICIES: Mapping[State, Policy] = {
    State.TEXT: GREEDY,
    State.TRANSCRIPT: GREEDY,
    State.SPEECH: GREEDY,
    State.IMAGE: GREEDY,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Policies:
    """The fields of `Policy` as arrays: [B, states] for a batch, [B] once the state is known."""

    greedy: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    repetition_penalty: jax.Array

    @classmethod
    def stack(cls, requests: Sequence[Mapping[State, Policy]]) -> Policies:
        """One row per request; states that a request does not name get DEFAULT_POLICIES."""
        rows = [
            [{**DEFAULT_POLICIES, **row}.get(state, GREEDY) for state in State]  # DONE never chooses
            for row in requests
        ]
        dtypes = {"greedy": bool, "top_k": jnp.int32}
        return cls(
            **{
                field.name: jnp.asarray(
                    [[getattr(policy, field.name) for policy in row] for row in rows],
                    dtypes.get(field.name, jnp.float32),
                )
                for field in dataclasses.fields(cls)
            }
        )

    def at(self, state_b: jax.Array) -> Policies:
        """The policy of each row in its state."""
        return jax.tree.map(lambda values: values[jnp.arange(state_b.shape[0]), state_b], self)


def penalise(logits_bv: jax.Array, seen_bv: jax.Array, penalty_b: jax.Array) -> jax.Array:
    """Repetition penalty over the ids in `seen_bv` (bool), once per id, markers included (SPEC 6.5)."""
    penalty = penalty_b[:, None]
    return jnp.where(seen_bv, jnp.where(logits_bv < 0, logits_bv * penalty, logits_bv / penalty), logits_bv)


def row_keys(seeds: Sequence[int]) -> jax.Array:
    """One key per row from the request's own seed, uint32 [B, 2]."""
    return jax.vmap(jax.random.PRNGKey)(jnp.asarray(seeds, jnp.uint32))


def choose(
    logits_bv: jax.Array,
    allowed_bv: jax.Array,
    seen_bv: jax.Array,
    policy: Policies,
    keys_b: jax.Array,
    step_b: jax.Array,
) -> jax.Array:
    """Next token of every row, int32 [B].

    Args:
      logits_bv: float32; NaN counts as the least of numbers.
      allowed_bv, seen_bv: bool; at least one id is allowed per row, and no other is ever chosen.
      policy: [B] arrays.
      keys_b: `row_keys`; the draw of a row depends on its own key and `step_b` (int [B]) only.
    """
    penalised_bv = penalise(logits_bv, seen_bv, policy.repetition_penalty)
    # Finite, so that what is not allowed is always worse; a comparison with NaN is false.
    finite_bv = jnp.where(penalised_bv > -_LARGEST, jnp.minimum(penalised_bv, _LARGEST), -_LARGEST)
    masked_bv = jnp.where(allowed_bv, finite_bv, -jnp.inf)
    best_b = first_best(masked_bv)

    def draw() -> jax.Array:
        kept_bv = truncate(
            masked_bv / policy.temperature[:, None],
            jnp.where(policy.greedy, 0, policy.top_k),  # so that rows that do not draw make no work
            jnp.where(policy.greedy, 1.0, policy.top_p),
        )
        # One random number per row, not one per id.
        keys = jax.vmap(jax.random.fold_in)(keys_b, step_b)
        drawn_b = at_share(kept_bv, jax.vmap(jax.random.uniform)(keys), best_b)
        return jnp.where(policy.greedy, best_b, drawn_b)

    # One scalar branch for the whole batch: a batch that is all greedy at this step draws nothing.
    return jax.lax.cond(jnp.all(policy.greedy), lambda: best_b, draw)
