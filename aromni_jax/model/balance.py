"""Causal attention over several devices of one row: queries dealt so that each device has as much to do.

A row cut in as many parts as devices would give the last one nearly twice the average work: its queries see all keys,
those of the first one hardly any. Cut in twice as many, device i of n takes part i and part 2n - 1 - i.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_AXIS = "context"


def dealt_positions(length: int, devices: int) -> np.ndarray:
    """int32 [length]: the positions of the dealt queries, device by device; `length` is a multiple of 2 * devices."""
    parts = np.arange(length, dtype=np.int32).reshape(2 * devices, -1)
    return np.concatenate([part for i in range(devices) for part in (parts[i], parts[2 * devices - 1 - i])])


def deal(x: jax.Array, axis: int) -> jax.Array:
    """This device's part of an array that is split along `axis` in order -> its two parts; an even number of devices.

    To be called where the mesh axis "context" is manual (`jax.shard_map`).
    """
    first, second = jnp.split(x, 2, axis)
    early, late = _by_parity(*(_sent(half, number) for number, half in enumerate((first, second))))
    return jnp.concatenate([early, late], axis)


def collect(x: jax.Array, axis: int) -> jax.Array:
    """Inverse of `deal`."""
    halves = _by_parity(*jnp.split(x, 2, axis))
    return jnp.concatenate([_sent(half, number, back=True) for number, half in enumerate(halves)], axis)


def _sent(half: jax.Array, number: int, *, back: bool = False) -> jax.Array:
    """Every device's first (0) or second (1) half in order, at the device that it is dealt to; or `back` from there."""
    devices = jax.lax.axis_size(_AXIS)
    parts = [2 * device + number for device in range(devices)]
    ways = [(part // 2, part if part < devices else 2 * devices - 1 - part) for part in parts]
    return jax.lax.ppermute(half, _AXIS, [(there, here) if back else (here, there) for here, there in ways])


def _by_parity(even: jax.Array, odd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Devices of odd number swap the two: there the parts of even number are the late ones."""
    swap = jax.lax.axis_index(_AXIS) % 2 == 1
    return jnp.where(swap, odd, even), jnp.where(swap, even, odd)
