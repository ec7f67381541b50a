"""Attention over a key/value cache, in the form that the platform does best."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from aromni_jax.model.plain import xla_attend

_SUBLANES = 8  # rows of a TPU's tile


def cached_attend(
    q_bshe: jax.Array,
    k_bkte: jax.Array,
    v_bkte: jax.Array,
    mask_bst: jax.Array,
    scales_bkt: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """`xla_attend`, on TPUs with idle queries beside few; all other platforms get it as it is."""
    queries = q_bshe.shape[1] * (q_bshe.shape[2] // k_bkte.shape[1])  # that meet the same keys
    if queries >= _SUBLANES:
        return xla_attend(q_bshe, k_bkte, v_bkte, mask_bst, scales_bkt)
    return jax.lax.platform_dependent(
        q_bshe, k_bkte, v_bkte, mask_bst, scales_bkt, tpu=padded_attend, default=xla_attend
    )


def padded_attend(
    q_bshe: jax.Array,
    k_bkte: jax.Array,
    v_bkte: jax.Array,
    mask_bst: jax.Array,
    scales_bkt: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """`xla_attend` with idle queries added.

    The TPU compiler turns the product of a single query and its keys into elementwise work, which by its own estimate
    takes four times as long as reading the keys, and wants another layout of the cache for it: every call copies
    all of it. Of eight queries, which fill a tile, the matrix unit makes short work.
    """
    s = q_bshe.shape[1]
    more = _SUBLANES - s
    q_bshe = jnp.pad(q_bshe, [(0, 0), (0, more), (0, 0), (0, 0)])
    mask_bst = jnp.pad(mask_bst, [(0, 0), (0, more), (0, 0)], mode="edge")
    return xla_attend(q_bshe, k_bkte, v_bkte, mask_bst, scales_bkt)[:, :s]
