"""Normalisation, computed in float32 and returned in the dtype of the input (SPEC 3.2, 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rms_norm(x_bsd: jax.Array, scale_d: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis; the normalised value is cast back before it meets the weight."""
    x32 = x_bsd.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    normed = (x32 * inverse).astype(x_bsd.dtype)
    return _scaled(normed, scale_d)


@jax.custom_vjp
def _scaled(x_bsd: jax.Array, scale_d: jax.Array) -> jax.Array:
    """Their product in the dtype of x; the gradient of the scale is added up over all tokens in float32."""
    return x_bsd * _along_last(scale_d.astype(x_bsd.dtype), x_bsd.ndim)


def _scaled_forward(x_bsd: jax.Array, scale_d: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _scaled(x_bsd, scale_d), (x_bsd, scale_d)


def _scaled_backward(residuals: tuple[jax.Array, jax.Array], dy_bsd: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_bsd, scale_d = residuals
    products = dy_bsd.astype(jnp.float32) * x_bsd.astype(jnp.float32)
    d_scale_d = jnp.sum(products, axis=range(x_bsd.ndim - 1)).astype(scale_d.dtype)
    return dy_bsd * _along_last(scale_d.astype(dy_bsd.dtype), dy_bsd.ndim), d_scale_d


_scaled.defvjp(_scaled_forward, _scaled_backward)


def _along_last(vector_d: jax.Array, dimensions: int) -> jax.Array:
    return jnp.expand_dims(vector_d, range(dimensions - 1))


def head_layer_norm(x: jax.Array, scale_ge: jax.Array, bias_ge: jax.Array, eps: float, form: str = "bshe") -> jax.Array:
    """LayerNorm over each head's dimensions, of an array with axes in the order of `form`; float32 (RoPE follows).

    Weight and bias are those of g groups of heads: head i belongs to group i * g / h.
    """
    axis = form.index("e")
    heads, groups = x.shape[form.index("h")], scale_ge.shape[0]
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis, keepdims=True)
    centred = x32 - mean
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis, keepdims=True) + eps)

    def of_heads(vectors_ge: jax.Array) -> jax.Array:
        vectors_he = jnp.repeat(vectors_ge.astype(jnp.float32), heads // groups, axis=0)
        return jnp.expand_dims(vectors_he, [at for at, name in enumerate(form) if name not in "he"])

    return centred * inverse * of_heads(scale_ge) + of_heads(bias_ge)
