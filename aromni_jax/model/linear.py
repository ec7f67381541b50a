"""A matrix product whose backward pass is written out, because the derived one is slow.

JAX derives the weight gradient of `x @ w` as (dy^T x)^T. On a CPU the outer transpose reaches back into whatever made
`dy` and is computed there, column by column; written as x^T dy, only the (usually narrower) input is transposed. The
feed-forward layer of a small model becomes twice as fast.

Weights keep their axes, heads and head_dim too: flattened for the product, they would be copied on a TPU, which lays
out the last two axes of an array in tiles.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from aromni_jax.parallel import sum_over_rows, whole

Axes = tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(x: jax.Array, kernel: jax.Array, axes: Axes, equation: str = "bsd,df->bsf") -> jax.Array:
    """`einsum(equation, x, kernel)` in the dtype of `x`; the kernel is cast to it.

    Args:
      axes: logical names of the kernel's axes (`parallel.ShardingRules`). Its gradient is summed over devices in the
        dtype of `x`.
      equation: of the axes of x, of the kernel and of the result, rows "b" and positions "s" in the first and the last.
    """
    return _product(x, kernel, axes, equation)


def _forward(x: jax.Array, kernel: jax.Array, axes: Axes, equation: str) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # Not a call of `linear`: a remat policy that keeps matrix products has to see the product itself.
    return _product(x, kernel, axes, equation), (x, kernel)


def _backward(
    axes: Axes, equation: str, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    of_x, of_kernel, of_y = equation.replace("->", ",").split(",")
    # Both products read it; left to itself the TPU compiler computes what led to it once in each of them.
    dy = jax.lax.optimization_barrier(dy)
    dx = jnp.einsum(f"{of_y},{of_kernel}->{of_x}", dy, whole(kernel.astype(dy.dtype), axes))
    outer = functools.partial(jnp.einsum, f"{of_x},{of_y}->{of_kernel}", preferred_element_type=jnp.float32)
    d_kernel = sum_over_rows(outer, x, dy, names=(of_x, of_y), axes=axes, dtype=x.dtype)
    return dx, d_kernel.astype(kernel.dtype)


def _product(x: jax.Array, kernel: jax.Array, axes: Axes, equation: str) -> jax.Array:
    # Backward in the same words: the kernel is brought together once for what is recomputed and for the product there.
    return jnp.einsum(equation, x, whole(kernel.astype(x.dtype), axes))


linear.defvjp(_forward, _backward)
