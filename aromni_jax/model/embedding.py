"""The embedding lookup, with a backward pass that leaves every device its own part of the table's gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from aromni_jax.parallel import sum_over_rows, whole

_AXES = ("vocab", "embed")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed(table_vd: jax.Array, tokens_bs: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rows of the table, [b, s, d], in `dtype`; the table's gradient is summed over devices in it."""
    # Whole along d before the lookup: a table split over fsdp in d would meet rows split over fsdp in b.
    return whole(table_vd.astype(dtype), _AXES)[tokens_bs]


def _forward(
    table_vd: jax.Array, tokens_bs: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return embed(table_vd, tokens_bs, dtype), (table_vd, tokens_bs)


def _backward(
    dtype: DTypeLike, residuals: tuple[jax.Array, jax.Array], dx_bsd: jax.Array
) -> tuple[jax.Array, np.ndarray]:
    table_vd, tokens_bs = residuals

    def added(tokens_bs: jax.Array, dx_bsd: jax.Array) -> jax.Array:
        # A sum in half precision stands still at 256 times what is added, and some tokens occur in every picture.
        return jnp.zeros(table_vd.shape, jnp.float32).at[tokens_bs].add(dx_bsd.astype(jnp.float32))

    d_table_vd = sum_over_rows(added, tokens_bs, dx_bsd, axes=_AXES, dtype=dtype)
    return d_table_vd.astype(table_vd.dtype), np.zeros(tokens_bs.shape, jax.dtypes.float0)


embed.defvjp(_forward, _backward)
