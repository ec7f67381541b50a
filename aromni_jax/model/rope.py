"""Rotary positions in the one internal layout: rotate-half.

Dimension i of the first half turns with dimension i of the second half. The interleaved layout of the released weights
(pairs 2i, 2i+1; SPEC 3.3, 3.4) becomes this one by reordering query and key rows at import; scores are unchanged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotary_angles(
    positions_bs: jax.Array, head_dim: int, theta: float, form: str = "bshe"
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of position * theta^(-2i / head_dim): float32, for arrays with axes in the order of `form`.

    As these, with one head and half of the head's dimensions: [b, s, 1, head_dim / 2] for "bshe".
    """
    frequency_e = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    position = jnp.expand_dims(positions_bs.astype(jnp.float32), [form.index("h"), form.index("e")])
    angle = position * jnp.expand_dims(frequency_e, [at for at, name in enumerate(form) if name != "e"])
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array], form: str = "bshe") -> jax.Array:
    """Turn every pair (i, i + head_dim / 2) of a float32 array with axes in the order of `form` by its angle."""
    cos, sin = angles
    axis = form.index("e")
    first, second = jnp.split(x, 2, axis)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis)
