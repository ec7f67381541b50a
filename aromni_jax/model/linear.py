"""A matrix product whose backward pass is written out, because the derived one is slow on CPUs.

JAX derives the weight gradient of `x @ w` as (dy^T x)^T. On a CPU the outer transpose reaches back into whatever made
`dy` and is computed there, column by column; written as x^T dy, only the (usually narrower) input is transposed. The
feed-forward layer of a small model becomes twice as fast; elsewhere the compiler makes the same program of both.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from aromni_jax.parallel import shard, sum_over_rows

Axes = tuple[str, str]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x_bsd: jax.Array, kernel_df: jax.Array, axes: Axes) -> jax.Array:
    """x [b, s, d] @ kernel [d, f] -> [b, s, f], in the dtype of `x_bsd`; the kernel is cast to it.

    Args:
      axes: logical names of the kernel's axes (`parallel.ShardingRules`). Its gradient is summed over devices in the
        dtype of `x_bsd`.
    """
    return _product(x_bsd, kernel_df, axes)


def _forward(x_bsd: jax.Array, kernel_df: jax.Array, axes: Axes) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not a call of `linear`: a remat policy that keeps matrix products has to see the product itself.
    return _product(x_bsd, kernel_df, axes), (x_bsd, kernel_df)


def _backward(axes: Axes, residuals: tuple[jax.Array, jax.Array], dy_bsf: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_bsd, kernel_df = residuals
    dx_bsd = jax.lax.dot_general(dy_bsf, _whole(kernel_df, axes, dy_bsf.dtype), (((2,), (1,)), ((), ())))
    d_kernel_df = sum_over_rows(_outer, x_bsd, dy_bsf, axes=axes, dtype=x_bsd.dtype)
    return dx_bsd, d_kernel_df.astype(kernel_df.dtype)


def _product(x_bsd: jax.Array, kernel_df: jax.Array, axes: Axes) -> jax.Array:
    return jnp.einsum("bsd,df->bsf", x_bsd, _whole(kernel_df, axes, x_bsd.dtype))


def _whole(kernel_df: jax.Array, axes: Axes, dtype: DTypeLike) -> jax.Array:
    """The kernel as products want it: together again along the axis that is split over devices only to be kept.

    Said so in the same words forward and backward, the kernel is brought together once for what the backward pass
    recomputes and for its own product.
    """
    return shard(kernel_df.astype(dtype), *(None if axis == "embed" else axis for axis in axes))


def _outer(x_bsd: jax.Array, dy_bsf: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x_bsd, dy_bsf, (((0, 1), (0, 1)), ((), ())), preferred_element_type=jnp.float32)


linear.defvjp(_forward, _backward)
