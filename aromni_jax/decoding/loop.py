"""The two compiled programs of the engine: prefill, and a chunk of decoding steps as one `lax.scan`.

Weights and all per-request values are arguments; only shapes, the model's configuration and the grammar are static.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from aromni_jax.config import ModelConfig
from aromni_jax.decoding import guidance as guide
from aromni_jax.decoding.grammar import Grammar, GrammarState, Rules, State
from aromni_jax.decoding.sampling import Policies, choose
from aromni_jax.model import KVCache, Params, forward, logits
from aromni_jax.parallel import shard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """What stays fixed while a batch is decoded.

    Attributes:
      rules, policies: [B] and [B, states] arrays.
      keys_b: uint32 [B, 2], one random key per request.
      branches: rows of the cache, see `guidance.Branches`.
      prompt_slots: int32 scalar, slots of the cache that were taken up when the prompts were read.
    """

    rules: Rules
    policies: Policies
    keys_b: jax.Array
    branches: guide.Branches
    prompt_slots: jax.Array


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


@functools.partial(jax.jit, static_argnames=("config", "grammar"), donate_argnames=("cache",))
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
) -> Carry:
    """Read the part of every prompt that the cache does not hold.

    Args:
      cache: of R rows. Donated.
      seen_bv: bool [B, V], the ids of each whole prompt.
      tokens_rp: int32 [R, P], what is to be read, padded on the left; lengths_r: int32 [R], real tokens per row.
      keep_r: int32 [R], how many of a row's tokens in the cache its prompt begins with; the others are forgotten.
      idle_b: bool [B], rows that only fill up the batch.
    """
    slots = tokens_rp.shape[1]
    real_rp = jnp.arange(slots)[None] >= slots - lengths_r[:, None]
    hidden_rpd, filled = forward(
        params, config, tokens_rp, segment_ids_bs=real_rp.astype(jnp.int32), cache=cache.keep_first(keep_r)
    )
    assert filled is not None, "forward returns the cache it was given"
    return Carry(filled, hidden_rpd[:, -1], grammar.start(rules, idle_b), seen_bv).split()


empty = jax.jit(KVCache.create, static_argnums=(0, 1, 2, 3))
pick = jax.jit(KVCache.pick, static_argnames=("length",))
grow = jax.jit(KVCache.grow, static_argnames=("length",))


@functools.partial(jax.jit, static_argnames=("config", "grammar", "steps", "guided"), donate_argnames=("carry",))
def decode(
    params: Params,
    carry: Carry,
    inputs: Inputs,
    *,
    config: ModelConfig,
    grammar: Grammar,
    steps: int,
    guided: bool,
) -> tuple[Carry, jax.Array]:
    """Emit `steps` tokens per row. Returns the carry and int32 [3, steps, B]: tokens (pad once done), the states they
    were chosen in, and the states they led to.

    `guided` is static: False leaves the side rows out of the program (there are none then).
    """
    vocabulary = grammar.vocabulary
    rows_b = jnp.arange(inputs.keys_b.shape[0])

    def step(carry: Carry, _: None) -> tuple[Carry, jax.Array]:
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
            cache = guide.forget_last_picture(vocabulary, inputs.branches, cache, tokens_r, inputs.prompt_slots)
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

    carry, told_s3b = jax.lax.scan(step, carry, None, length=steps)
    return carry, told_s3b.swapaxes(0, 1)
