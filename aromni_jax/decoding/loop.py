"""The compiled programs of the engine: prefill, a chunk of decoding steps as one loop, and moving rows about.

Weights and all per-request values are arguments; only shapes, the model's configuration and the grammar are static.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from aromni_jax.config import ModelConfig
from aromni_jax.decoding import guidance as guide
from aromni_jax.decoding.grammar import Grammar, GrammarState, Rules, State, initial_state
from aromni_jax.decoding.sampling import Policies, choose
from aromni_jax.model import KVCache, Params, forward, logits
from aromni_jax.parallel import shard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """What stays fixed while the same rows are decoded.

    Attributes:
      rules, policies: [B] and [B, states] arrays.
      keys_b: uint32 [B, 2], one random key per request.
      idle_b: bool [B], rows without a request.
      branches: rows of the cache, see `guidance.Branches`.
      prompt_slots_r: int32 [R], the first slot of each row's cache that is not its prompt's.
    """

    rules: Rules
    policies: Policies
    keys_b: jax.Array
    idle_b: jax.Array
    branches: guide.Branches
    prompt_slots_r: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
    """What changes from token to token. Donated to each chunk.

    Attributes:
      cache: of all R rows.
      hidden_rd: final hidden state of each row's last token; the next token is chosen from it.
      grammar: [B].
      seen_bv: bool [B, V], ids in prompt and answer so far (repetition penalty).
    """

    cache: KVCache
    hidden_rd: jax.Array
    grammar: GrammarState
    seen_bv: jax.Array

    def split(self) -> Carry:
        """The same, rows and vocabulary split over the mesh of `jax.set_mesh`; every program leaves it so."""
        return Carry(
            self.cache,  # `forward` has done it
            shard(self.hidden_rd, "batch", None),
            jax.tree.map(lambda array_b: shard(array_b, "batch"), self.grammar),
            shard(self.seen_bv, "batch", "vocab"),
        )


@functools.partial(jax.jit, static_argnames=("config", "grammar", "fresh"), donate_argnames=("cache",))
def prefill(
    params: Params,
    cache: KVCache,
    seen_bv: jax.Array,
    tokens_rp: jax.Array,
    lengths_r: jax.Array,
    keep_r: jax.Array,
    rules: Rules,
    idle_b: jax.Array,
    *,
    config: ModelConfig,
    grammar: Grammar,
    fresh: bool,
) -> Carry:
    """Read the part of every prompt that the cache does not hold.

    Args:
      cache: of R rows. Donated.
      seen_bv: bool [B, V], the ids of each whole prompt.
      tokens_rp: int32 [R, P], what is to be read, padded on the left; lengths_r: int32 [R], real tokens per row.
      keep_r: int32 [R], how many of a row's tokens in the cache its prompt begins with; the others are forgotten.
      idle_b: bool [B], rows that only fill up the batch.
      fresh: static; the cache is empty, so that the prompts are read by the configured attention.
    """
    slots = tokens_rp.shape[1]
    real_rp = jnp.arange(slots)[None] >= slots - lengths_r[:, None]
    hidden_rpd, filled = forward(
        params, config, tokens_rp, segment_ids_bs=real_rp.astype(jnp.int32), cache=cache.keep_first(keep_r), fresh=fresh
    )
    assert filled is not None, "forward returns the cache it was given"
    return Carry(filled, hidden_rpd[:, -1], grammar.start(rules, idle_b), seen_bv).split()


@functools.partial(jax.jit, static_argnames=("batch", "config", "grammar"), donate_argnames=("cache",))
def vacant(cache: KVCache, *, batch: int, config: ModelConfig, grammar: Grammar) -> Carry:
    """`batch` main rows of nobody, and side rows as many as the empty `cache` has more."""
    rows = len(cache.positions_b)
    return Carry(
        cache,
        jnp.zeros((rows, config.dim), config.compute_dtype),
        initial_state(jnp.zeros(batch, jnp.int32), jnp.ones(batch, bool)),
        jnp.zeros((batch, grammar.vocabulary.size), bool),
    ).split()


@functools.partial(jax.jit, donate_argnames=("carry",))
def join(carry: Carry, new: Carry, mains_b: jax.Array, sides_s: jax.Array, index: jax.Array) -> Carry:
    """Give rows of `carry` to newcomers, the first main rows and the first side rows of `new`.

    Args:
      mains_b: int32 [b], the main rows that they get; sides_s: int32 [s], the same of side rows, counted with the main
        rows before them.
      index: as in `KVCache.put`.
    """
    rows_r, batch = jnp.concatenate([mains_b, sides_s]), len(new.seen_bv)
    of_b = jnp.arange(len(mains_b))
    of_r = [*range(len(mains_b)), *range(batch, batch + len(sides_s))]
    return Carry(
        cache=carry.cache.put(rows_r, new.cache, of_r, index),
        hidden_rd=carry.hidden_rd.at[rows_r].set(new.hidden_rd[jnp.asarray(of_r)]),
        grammar=jax.tree.map(lambda old, put: old.at[mains_b].set(put[of_b]), carry.grammar, new.grammar),
        seen_bv=carry.seen_bv.at[mains_b].set(new.seen_bv[of_b]),
    ).split()


@functools.partial(jax.jit, static_argnames=("length",))
def repack(carry: Carry, rows_r: jax.Array, keep_r: jax.Array, *, length: int) -> Carry:
    """The same main rows, and side rows `rows_r` (int32 [R], the main rows first), side by side; see `KVCache.pick`."""
    cache, hidden_rd = carry.cache.pick(rows_r, keep_r, length), carry.hidden_rd[rows_r]
    return dataclasses.replace(carry, cache=cache, hidden_rd=hidden_rd).split()


empty = jax.jit(KVCache.create, static_argnums=(0, 1, 2, 3))
pick = jax.jit(KVCache.pick, static_argnames=("length",))
grow = jax.jit(KVCache.grow, static_argnames=("length",))


@functools.partial(jax.jit, static_argnames=("config", "grammar", "steps", "guided"), donate_argnames=("carry",))
def decode(
    params: Params,
    carry: Carry,
    inputs: Inputs,
    most: jax.Array,
    *,
    config: ModelConfig,
    grammar: Grammar,
    steps: int,
    guided: bool,
) -> tuple[Carry, jax.Array]:
    """Emit up to `most` (int32 scalar, at most `steps`) tokens per row; another `most` compiles nothing.

    Returns the carry and int32 [3, steps, B]: tokens (pad once done), the states they were chosen in, and the states
    they led to. Stops when all rows are done, so a call that comes too late costs nothing: steps that were not taken
    fill no slot of the cache and are told as DONE. `guided` is static: False leaves the side rows out of the program
    (there are none then).
    """
    vocabulary = grammar.vocabulary
    rows_b = jnp.arange(inputs.keys_b.shape[0])

    def step(carry: Carry) -> tuple[Carry, jax.Array]:
        state_b = carry.grammar.state_b
        logits_bv = logits(params, config, carry.hidden_rd)
        if guided:
            logits_bv = guide.mix(logits_bv, inputs.branches, state_b)
        tokens_b = choose(
            logits_bv,
            grammar.allowed(carry.grammar, inputs.rules),
            carry.seen_bv,
            inputs.policies.at(state_b),
            inputs.keys_b,
            carry.grammar.emitted_b,
        )
        live_b = state_b != State.DONE
        cache, tokens_r, reads_r = carry.cache, tokens_b, live_b
        if guided:
            tokens_r, reads_r = guide.reading(vocabulary, inputs.branches, tokens_b, live_b)
            cache = guide.forget_last_picture(vocabulary, inputs.branches, cache, tokens_r, inputs.prompt_slots_r)
        hidden_r1d, filled = forward(
            params, config, tokens_r[:, None], segment_ids_bs=reads_r[:, None].astype(jnp.int32), cache=cache
        )
        assert filled is not None, "forward returns the cache it was given"
        # A row that does not read this token keeps the state from which its next logits come.
        hidden_rd = jnp.where(reads_r[:, None], hidden_r1d[:, 0], carry.hidden_rd)
        after = Carry(
            filled,
            hidden_rd,
            grammar.advance(carry.grammar, inputs.rules, tokens_b),
            carry.seen_bv.at[rows_b, tokens_b].set(True),
        ).split()
        return after, jnp.stack([tokens_b, state_b, after.grammar.state_b])

    def more(at: tuple[jax.Array, Carry, jax.Array]) -> jax.Array:
        number, carry, _ = at
        return (number < most) & jnp.any(carry.grammar.state_b != State.DONE)

    def next_step(at: tuple[jax.Array, Carry, jax.Array]) -> tuple[jax.Array, Carry, jax.Array]:
        number, carry, told_3sb = at
        carry, told_3b = step(carry)
        return number + 1, carry, jax.lax.dynamic_update_index_in_dim(told_3sb, told_3b, number, axis=1)

    # Rows that somebody has left are idle from here on, whatever they were about.
    state_b = jnp.where(inputs.idle_b, State.DONE, carry.grammar.state_b)
    carry = dataclasses.replace(carry, grammar=dataclasses.replace(carry.grammar, state_b=state_b)).split()
    nothing_3 = jnp.asarray([vocabulary.pad, State.DONE, State.DONE], jnp.int32)
    told_3sb = jnp.broadcast_to(nothing_3[:, None, None], (3, steps, len(rows_b)))
    _, carry, told_3sb = jax.lax.while_loop(more, next_step, (jnp.zeros((), jnp.int32), carry, told_3sb))
    return carry, shard(told_3sb, None, None, None)  # whole everywhere: every process of several reads it
