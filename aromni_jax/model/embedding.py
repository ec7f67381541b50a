"""The embedding lookup, with a backward pass that leaves every device its own part of the table's gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax.parallel import sum_over_rows


@jax.custom_vjp
def embed(table_vd: jax.Array, tokens_bs: jax.Array) -> jax.Array:
    """Rows of the table, [b, s, d]."""
    return table_vd[tokens_bs]


def _forward(table_vd: jax.Array, tokens_bs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return table_vd[tokens_bs], (table_vd, tokens_bs)


def _backward(residuals: tuple[jax.Array, jax.Array], dx_bsd: jax.Array) -> tuple[jax.Array, np.ndarray]:
    table_vd, tokens_bs = residuals

    def added(tokens_bs: jax.Array, dx_bsd: jax.Array) -> jax.Array:
        return jnp.zeros(table_vd.shape, table_vd.dtype).at[tokens_bs].add(dx_bsd)

    d_table_vd = sum_over_rows(added, tokens_bs, dx_bsd, axes=("vocab", "embed"), dtype=dx_bsd.dtype)
    return d_table_vd, np.zeros(tokens_bs.shape, jax.dtypes.float0)


embed.defvjp(_forward, _backward)
