"""The rule of who sees whom, and attention by the book: whole score matrices, any device, any shape."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Who sees whom: slots (place in the row or in the cache) and segment ids of queries and keys.

    Attributes:
      query_slots_s: int32 [s]; key slots are 0..t-1.
      query_segments_bs: int32 [b, s], key_segments_bt: int32 [b, t]; both None when every row is one segment.
    """

    query_slots_s: jax.Array
    query_segments_bs: jax.Array | None
    key_segments_bt: jax.Array | None


def dense_mask(visibility: Visibility, keys: int) -> jax.Array:
    """bool [b or 1, s, t], True where the query sees the key."""
    mask = jnp.arange(keys)[None, None, :] <= visibility.query_slots_s[None, :, None]
    if visibility.query_segments_bs is None or visibility.key_segments_bt is None:
        return mask
    return mask & (visibility.query_segments_bs[:, :, None] == visibility.key_segments_bt[:, None, :])


def xla_attend(
    q_bshe: jax.Array,
    k_bkte: jax.Array,
    v_bkte: jax.Array,
    mask_bst: jax.Array,
    scales_bkt: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Reference: whole score matrix, float32 scores and softmax, query heads grouped over key/value heads.

    Keys and values are brought to the dtype of the queries. `scales_bkt`: of keys and of values, where these are whole
    numbers to be multiplied by them; they go into scores and weights, which are smaller than keys and values.
    """
    b, s, h, e = q_bshe.shape
    kv = k_bkte.shape[1]
    q_bskge = q_bshe.reshape(b, s, kv, h // kv, e)
    k_bkte, v_bkte = k_bkte.astype(q_bshe.dtype), v_bkte.astype(q_bshe.dtype)
    scores = jnp.einsum("bskge,bkte->bkgst", q_bskge, k_bkte, preferred_element_type=jnp.float32)
    if scales_bkt is not None:
        scores *= scales_bkt[0][:, :, None, None]
    scores = jnp.where(mask_bst[:, None, None], scores * e**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if scales_bkt is not None:
        weights *= scales_bkt[1][:, :, None, None]
    mixed_bkgse = jnp.einsum("bkgst,bkte->bkgse", weights.astype(v_bkte.dtype), v_bkte)
    return mixed_bkgse.transpose(0, 3, 1, 2, 4).reshape(b, s, h, e)
