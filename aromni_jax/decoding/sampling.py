"""Choosing the next token: a policy per state of the grammar, as arrays, so new values never recompile.

Order of the steps as in the reference (SPEC 6.5): allowed ids, repetition penalty, temperature, top-k, top-p, choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from aromni_jax.decoding.grammar import State
from aromni_jax.errors import UserError


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
            ("temperature", self.temperature > 0),
            ("top_k", self.top_k >= 0),
            ("top_p", 0 <= self.top_p <= 1),
            ("repetition_penalty", self.repetition_penalty > 0),
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


def truncate(logits_bv: jax.Array, top_k_b: jax.Array, top_p_b: jax.Array) -> jax.Array:
    """-inf outside the k best and outside the nucleus of mass p among those; the best always stays.

    Keeps a token iff the mass of the strictly better ones is below p: the reference's rule (drop while the ascending
    cumulative mass is at most 1 - p), seen from the other end.
    """
    size = logits_bv.shape[-1]
    sorted_bv = -jnp.sort(-logits_bv, axis=-1)
    rank = jnp.arange(size)[None]
    keep = rank < jnp.where(top_k_b == 0, size, top_k_b)[:, None]
    probs = jax.nn.softmax(jnp.where(keep, sorted_bv, -jnp.inf), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    keep &= (before < top_p_b[:, None]) | (top_p_b[:, None] >= 1)
    keep |= rank == 0
    worst_kept = jnp.min(jnp.where(keep, sorted_bv, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_bv >= worst_kept, logits_bv, -jnp.inf)


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
      logits_bv: float32.
      allowed_bv, seen_bv: bool; at least one id is allowed per row.
      policy: [B] arrays.
      keys_b: `row_keys`; the draw of a row depends on its own key and `step_b` (int [B]) only.
    """
    masked_bv = jnp.where(allowed_bv, penalise(logits_bv, seen_bv, policy.repetition_penalty), -jnp.inf)
    best_b = jnp.argmax(masked_bv, axis=-1)

    def draw() -> jax.Array:
        kept_bv = truncate(masked_bv / policy.temperature[:, None], policy.top_k, policy.top_p)
        mass_bv = jnp.cumsum(jax.nn.softmax(kept_bv, axis=-1), axis=-1)
        # One random number per row, not one per id; `best` where rounding puts it past the last of the mass.
        keys = jax.vmap(jax.random.fold_in)(keys_b, step_b)
        past_bv = mass_bv > jax.vmap(jax.random.uniform)(keys)[:, None] * mass_bv[:, -1:]
        drawn_b = jnp.where(jnp.any(past_bv, axis=-1), jnp.argmax(past_bv, axis=-1), best_b)
        return jnp.where(policy.greedy, best_b, drawn_b)

    # One scalar branch for the whole batch: a batch that is all greedy at this step sorts nothing.
    return jax.lax.cond(jnp.all(policy.greedy), lambda: best_b, draw).astype(jnp.int32)
