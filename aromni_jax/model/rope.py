"""Rotary positions in the one internal layout: rotate-half.

Dimension i of the first half turns with dimension i of the second half. The interleaved layout of the released weights
(pairs 2i, 2i+1; SPEC 3.3, 3.4) becomes this one by reordering query and key rows at import; scores are unchanged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotary_angles(positions_bs: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of position * theta^(-2i / head_dim): two float32 [b, s, 1, head_dim / 2]."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_bs.astype(jnp.float32)[..., None, None] * frequency[None, None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_bshe: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn every pair (i, i + head_dim / 2) of a float32 array by its angle."""
    cos, sin = angles
    first, second = jnp.split(x_bshe, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
