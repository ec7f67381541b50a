"""Cross entropy over vocabulary tiles: the whole [b, s, v] score array never exists when there is more than one tile.

Forward keeps a running maximum and sum of exponentials per position; backward recomputes each tile's scores. With one
tile (small vocabularies) the scores are kept instead. Scores, sums and accumulated gradients are float32; the matrix
products run in the dtype of the hidden states.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aromni_jax.parallel import scan, sum_over_rows


class CrossEntropy(NamedTuple):
    """Per position, float32 [b, s]: -log p(target), log of the normaliser, 1 where the target scores highest."""

    ce_bs: jax.Array
    log_z_bs: jax.Array
    correct_bs: jax.Array


class _Running(NamedTuple):
    maximum_bs: jax.Array
    sum_bs: jax.Array
    target_bs: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(hidden_bsd: jax.Array, head_dv: jax.Array, targets_bs: jax.Array, tile: int = 0) -> CrossEntropy:
    """Cross entropy of softmax(hidden @ head) against int targets, differentiable in `hidden_bsd` and `head_dv`.

    Args:
      tile: columns of the vocabulary per tile; 0, or at least v, means one tile.

    Returns:
      CrossEntropy; gradients flow through `ce_bs` and `log_z_bs` (for a z-loss), not through `correct_bs`.
    """
    return _forward(hidden_bsd, head_dv, targets_bs, tile)[0]


def _forward(
    hidden_bsd: jax.Array, head_dv: jax.Array, targets_bs: jax.Array, tile: int
) -> tuple[CrossEntropy, tuple[jax.Array, ...]]:
    vocab = head_dv.shape[1]
    minimum_bs = jnp.full(targets_bs.shape, -jnp.inf, jnp.float32)
    running = _Running(minimum_bs, jnp.zeros_like(minimum_bs), jnp.zeros_like(minimum_bs))
    kept: tuple[jax.Array, ...] = ()
    if _one_tile(vocab, tile):
        scores_bsv = _scores(hidden_bsd, head_dv)
        running = _fold(running, scores_bsv, targets_bs, 0)
        kept = (scores_bsv,)
    else:

        def step(running: _Running, number: jax.Array) -> tuple[_Running, None]:
            start, first = _tile_start(number, tile, vocab)
            scores_bsv = _scores(hidden_bsd, jax.lax.dynamic_slice_in_dim(head_dv, start, tile, axis=1))
            scores_bsv = jnp.where((jnp.arange(tile) + start >= first)[None, None], scores_bsv, -jnp.inf)
            return _fold(running, scores_bsv, targets_bs, start), None

        running, _ = scan(step, running, jnp.arange(-(-vocab // tile)))
    log_z_bs = running.maximum_bs + jnp.log(running.sum_bs)
    correct_bs = (running.target_bs >= running.maximum_bs).astype(jnp.float32)
    result = CrossEntropy(log_z_bs - running.target_bs, log_z_bs, correct_bs)
    return result, (hidden_bsd, head_dv, targets_bs, log_z_bs, *kept)


def _backward(tile: int, residuals: tuple[jax.Array, ...], cotangent: CrossEntropy) -> tuple[jax.Array, ...]:
    hidden_bsd, head_dv, targets_bs, log_z_bs, *kept = residuals
    vocab = head_dv.shape[1]

    def gradients(scores_bsv: jax.Array, kernel_dv: jax.Array, ids_v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the hidden states and of one tile's columns, both float32."""
        share_bsv = (cotangent.ce_bs + cotangent.log_z_bs)[..., None] * jnp.exp(scores_bsv - log_z_bs[..., None])
        hit_bsv = targets_bs[..., None] == ids_v[None, None]
        d_bsv = (share_bsv - jnp.where(hit_bsv, cotangent.ce_bs[..., None], 0.0)).astype(hidden_bsd.dtype)
        kernel_dv = kernel_dv.astype(hidden_bsd.dtype)
        d_hidden_bsd = jnp.einsum("bsv,dv->bsd", d_bsv, kernel_dv, preferred_element_type=jnp.float32)
        d_kernel_dv = sum_over_rows(
            _kernel_gradient, hidden_bsd, d_bsv, axes=("embed", "vocab"), dtype=hidden_bsd.dtype
        )
        return d_hidden_bsd, d_kernel_dv

    if kept:
        d_hidden_bsd, d_head_dv = gradients(kept[0], head_dv, jnp.arange(vocab))
    else:

        def step(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            d_hidden_bsd, d_head_dv = carry
            start, first = _tile_start(number, tile, vocab)
            kernel_dv = jax.lax.dynamic_slice_in_dim(head_dv, start, tile, axis=1)
            ids_v = jnp.arange(tile) + start
            scores_bsv = jnp.where((ids_v >= first)[None, None], _scores(hidden_bsd, kernel_dv), -jnp.inf)
            # A column already done by the tile before gets no second share of its target either.
            new_bsd, new_dv = gradients(scores_bsv, kernel_dv, jnp.where(ids_v >= first, ids_v, -1))
            new_dv += jax.lax.dynamic_slice_in_dim(d_head_dv, start, tile, axis=1)
            d_head_dv = jax.lax.dynamic_update_slice_in_dim(d_head_dv, new_dv, start, axis=1)
            return (d_hidden_bsd + new_bsd, d_head_dv), None

        zeros = (jnp.zeros(hidden_bsd.shape, jnp.float32), jnp.zeros(head_dv.shape, jnp.float32))
        (d_hidden_bsd, d_head_dv), _ = scan(step, zeros, jnp.arange(-(-vocab // tile)))
    no_gradient = jnp.zeros(targets_bs.shape, jax.dtypes.float0)
    return d_hidden_bsd.astype(hidden_bsd.dtype), d_head_dv.astype(head_dv.dtype), no_gradient


def _kernel_gradient(hidden_bsd: jax.Array, d_bsv: jax.Array) -> jax.Array:
    return jnp.einsum("bsd,bsv->dv", hidden_bsd, d_bsv, preferred_element_type=jnp.float32)


def _one_tile(vocab: int, tile: int) -> bool:
    return tile == 0 or tile >= vocab


def _tile_start(number: jax.Array, tile: int, vocab: int) -> tuple[jax.Array, jax.Array]:
    """Where a tile is read, and its first column not yet done: the last tile ends where the vocabulary ends."""
    return jnp.minimum(number * tile, vocab - tile), number * tile


def _scores(hidden_bsd: jax.Array, kernel_dv: jax.Array) -> jax.Array:
    kernel_dv = kernel_dv.astype(hidden_bsd.dtype)
    return jnp.einsum("bsd,dv->bsv", hidden_bsd, kernel_dv, preferred_element_type=jnp.float32)


def _fold(running: _Running, scores_bsv: jax.Array, targets_bs: jax.Array, start: jax.Array | int) -> _Running:
    """Add one tile to the running maximum, sum of exp(score - maximum) and score of the target."""
    width = scores_bsv.shape[-1]
    maximum_bs = jnp.maximum(running.maximum_bs, jnp.max(scores_bsv, axis=-1))
    sum_bs = running.sum_bs * jnp.exp(running.maximum_bs - maximum_bs)
    sum_bs += jnp.sum(jnp.exp(scores_bsv - maximum_bs[..., None]), axis=-1)
    place_bs = targets_bs - start
    found_bs = jnp.take_along_axis(scores_bsv, jnp.clip(place_bs, 0, width - 1)[..., None], axis=-1)[..., 0]
    inside_bs = (place_bs >= 0) & (place_bs < width) & (found_bs > -jnp.inf)
    return _Running(maximum_bs, sum_bs, jnp.where(inside_bs, found_bs, running.target_bs))


cross_entropy.defvjp(_forward, _backward)
