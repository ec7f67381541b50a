"""The weighted next-token loss (paper eq. 2, SPEC 4.1, 4.2)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from aromni_jax.losses.cross_entropy import cross_entropy

Normalise = Literal["global", "micro_batch", "tokens"]


class NextToken(NamedTuple):
    """The loss, and what metrics per modality and task are made of.

    Position s of the arrays is about PREDICTING tokens[b, s] (0 where s = 0), so that it lines up with the batch's
    tokens, loss weights and task ids.

    Attributes:
      loss: float32 scalar, z-loss included.
      ce_bs: float32 [b, s], unweighted -log p of the token.
      correct_bs: float32 [b, s], 1 where the token was the most probable one.
      weights_bs: float32 [b, s], the weights that counted (0 across a segment border and on padding).
    """

    loss: jax.Array
    ce_bs: jax.Array
    correct_bs: jax.Array
    weights_bs: jax.Array


def weighted_next_token(
    hidden_bsd: jax.Array,
    head_dv: jax.Array,
    tokens_bs: jax.Array,
    loss_weights_bs: jax.Array,
    segment_ids_bs: jax.Array | None = None,
    *,
    normalise: Normalise = "global",
    denominator: jax.Array | None = None,
    z_loss: float = 0.0,
    tile: int = 0,
) -> NextToken:
    """sum(w * CE) / denominator, where position s - 1 predicts tokens[b, s] with weight w[b, s].

    Args:
      hidden_bsd: final hidden states, any float dtype.
      head_dv: output head, [d, v].
      loss_weights_bs: float [b, s], weight of predicting tokens[b, s]; 0 = not predicted.
      segment_ids_bs: int [b, s] of packed rows: no prediction across a border or into segment 0 (padding).
      normalise: see `next_token_denominator`; used when no denominator is given.
      denominator: that of the global batch, when these rows are only a part of it.
      z_loss: weight of log(Z)^2, weighted and normalised as the cross entropy is.
      tile: see `cross_entropy`.
    """
    weights_bs = _counted(loss_weights_bs, segment_ids_bs)
    if denominator is None:
        denominator = next_token_denominator(loss_weights_bs, segment_ids_bs, normalise)
    targets_bs = jnp.pad(tokens_bs[:, 1:], ((0, 0), (0, 1)))
    result = cross_entropy(hidden_bsd, head_dv, targets_bs, tile)
    per_token_bs = result.ce_bs + z_loss * jnp.square(result.log_z_bs) if z_loss else result.ce_bs
    loss = jnp.sum(_behind(per_token_bs) * weights_bs) / denominator
    return NextToken(loss, _behind(result.ce_bs), _behind(result.correct_bs), weights_bs)


def next_token_denominator(
    loss_weights_bs: jax.Array, segment_ids_bs: jax.Array | None = None, normalise: Normalise = "global"
) -> jax.Array:
    """What the weighted sum is divided by, float32 scalar, never below 1.

    "global" and "micro_batch" (SPEC 4.1): the sum of the weights; they differ in the rows the caller passes, the whole
    batch of an optimiser step or one micro-batch. "tokens" (paper eq. 2): the number of predicted tokens, T.
    """
    weights_bs = _counted(loss_weights_bs, segment_ids_bs)
    total = jnp.sum(weights_bs != 0) if normalise == "tokens" else jnp.sum(weights_bs)
    return jnp.maximum(total.astype(jnp.float32), 1.0)


def _counted(loss_weights_bs: jax.Array, segment_ids_bs: jax.Array | None) -> jax.Array:
    """The weights without the first token of a row, first tokens of segments, and padding."""
    weights_bs = loss_weights_bs.astype(jnp.float32)
    counts_bs = jnp.arange(weights_bs.shape[1])[None] > 0
    if segment_ids_bs is not None:
        counts_bs &= (segment_ids_bs != 0) & (segment_ids_bs == jnp.roll(segment_ids_bs, 1, axis=1))
    return jnp.where(counts_bs, weights_bs, 0.0)


def _behind(values_bs: jax.Array) -> jax.Array:
    """From the position that predicts to the position that is predicted."""
    return jnp.pad(values_bs[:, :-1], ((0, 0), (1, 0)))
