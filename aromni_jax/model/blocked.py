"""Attention in blocks of queries, with keys before queries in memory and its own backward pass; for CPUs.

Scores are kept as [key, query]: every product of the forward and of the backward pass is then an ordinary row-major
one, and the softmax runs along rows of memory. Keys that come after a whole block of queries are never computed.
m stands for g x s: the queries, of all heads that share a key/value head, side by side.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_BLOCK = 128


def blocked_attend(q_bshe: jax.Array, k_bkte: jax.Array, v_bkte: jax.Array, mask_bst: jax.Array) -> jax.Array:
    """As `xla_attend` with as many keys as queries: a row against itself. float32 inside."""
    b, s, h, e = q_bshe.shape
    kv = k_bkte.shape[1]
    # Query heads of one key/value head lie side by side: [b, k, e, g, s].
    q_bkegs = (q_bshe.astype(jnp.float32) * e**-0.5).reshape(b, s, kv, h // kv, e).transpose(0, 2, 4, 3, 1)
    k_bkte, v_bkte, dtype = k_bkte.astype(jnp.float32), v_bkte.astype(jnp.float32), v_bkte.dtype
    mask_bts = mask_bst.swapaxes(1, 2)
    outs = []
    for start in range(0, s, _BLOCK):
        stop = min(start + _BLOCK, s)
        outs.append(
            _attend(q_bkegs[..., start:stop], k_bkte[:, :, :stop], v_bkte[:, :, :stop], mask_bts[:, :stop, start:stop])
        )
    out_bkegs = jnp.concatenate(outs, axis=-1)
    return out_bkegs.transpose(0, 4, 1, 3, 2).reshape(b, s, h, e).astype(dtype)


@jax.custom_vjp
def _attend(q_bkegs: jax.Array, k_bkte: jax.Array, v_bkte: jax.Array, mask_bts: jax.Array) -> jax.Array:
    """Scaled queries [b,k,e,g,s], keys and values [b,k,t,e], mask [b or 1,t,s] -> [b,k,e,g,s]."""
    return _forward(q_bkegs, k_bkte, v_bkte, mask_bts)[0]


def _forward(
    q_bkegs: jax.Array, k_bkte: jax.Array, v_bkte: jax.Array, mask_bts: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    b, k, e, g, s = q_bkegs.shape
    q_bkem = q_bkegs.reshape(b, k, e, g * s)
    scores = jnp.einsum("bkte,bkem->bktm", k_bkte, q_bkem)
    mask_btm = jnp.tile(mask_bts, (1, 1, g))
    scores = jnp.where(mask_btm[:, None], scores, jnp.finfo(jnp.float32).min)
    p_bktm = jnp.exp(scores - jnp.max(scores, axis=2, keepdims=True))
    sum_bk1m = jnp.sum(p_bktm, axis=2, keepdims=True)
    out_bkem = jnp.einsum("bket,bktm->bkem", v_bkte.swapaxes(2, 3), p_bktm) / sum_bk1m
    return out_bkem.reshape(q_bkegs.shape), (q_bkem, k_bkte, v_bkte, p_bktm, sum_bk1m, out_bkem)


def _backward(residuals: tuple[jax.Array, ...], d_out_bkegs: jax.Array) -> tuple[jax.Array | None, ...]:
    q_bkem, k_bkte, v_bkte, p_bktm, sum_bk1m, out_bkem = residuals
    d_bkem = d_out_bkegs.reshape(q_bkem.shape) / sum_bk1m
    along_bk1m = jnp.sum(d_bkem * out_bkem, axis=2, keepdims=True)
    d_v_bkte = jnp.einsum("bktm,bkme->bkte", p_bktm, d_bkem.swapaxes(2, 3))
    d_scores = p_bktm * (jnp.einsum("bkte,bkem->bktm", v_bkte, d_bkem) - along_bk1m)
    d_k_bkte = jnp.einsum("bktm,bkme->bkte", d_scores, q_bkem.swapaxes(2, 3))
    d_q_bkem = jnp.einsum("bket,bktm->bkem", k_bkte.swapaxes(2, 3), d_scores)
    return d_q_bkem.reshape(d_out_bkegs.shape), d_k_bkte, d_v_bkte, None


_attend.defvjp(_forward, _backward)
