"""The key/value cache: an explicit argument and result of `forward`, in float32, bfloat16 or int8.

An int8 cache holds whole numbers from -127 to 127 and one float32 scale per token and head. Nothing multiplies it out:
a query's score is its product with the numbers, times the key's scale; a value's scale goes into the softmax weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aromni_jax import parallel
from aromni_jax.config import ModelConfig

CACHE_DTYPES = ("float32", "bfloat16", "int8")
Stored = dict[str, jax.Array]  # [layers, b, kv_heads, length, ...] each
_LARGEST = 127  # of the whole numbers; -128 is not used, so that the range is even


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (after QK-norm and RoPE) and values of every layer, written at one index shared by all rows.

    A slot is real where its segment id is not 0. Rows of different length take part by padding on any side: a token
    given with segment id 0 fills a slot that no real token ever sees and does not advance its row's position.

    Attributes:
      keys_lbkte, values_lbkte: [layers, b, kv_heads, length, head_dim]; int8 numbers where there are scales.
      segments_bt: int32 [b, length], 0 = empty or padding.
      positions_b: int32 [b], the position of each row's next real token.
      index: int32 scalar, the next slot to write. Writing past `length` is the caller's error and is not detected.
      key_scales_lbkt, value_scales_lbkt: float32 [layers, b, kv_heads, length] of an int8 cache, else None.
    """

    keys_lbkte: jax.Array
    values_lbkte: jax.Array
    segments_bt: jax.Array
    positions_b: jax.Array
    index: jax.Array
    key_scales_lbkt: jax.Array | None = None
    value_scales_lbkt: jax.Array | None = None

    @classmethod
    def create(cls, config: ModelConfig, batch: int, length: int, dtype: str | None = None) -> KVCache:
        """Empty cache for `batch` rows of at most `length` slots.

        `dtype` is one of CACHE_DTYPES; None = the compute dtype.
        """
        shape = (config.layers, batch, config.kv_heads, length, config.head_dim)
        dtype = dtype or config.compute_dtype

        def scales() -> jax.Array | None:
            return jnp.zeros(shape[:-1], jnp.float32) if dtype == "int8" else None

        return cls(
            keys_lbkte=jnp.zeros(shape, dtype),
            values_lbkte=jnp.zeros(shape, dtype),
            segments_bt=jnp.zeros((batch, length), jnp.int32),
            positions_b=jnp.zeros((batch,), jnp.int32),
            index=jnp.zeros((), jnp.int32),
            key_scales_lbkt=scales(),
            value_scales_lbkt=scales(),
        ).split()

    @property
    def stored(self) -> Stored:
        """What is kept of keys and values, by field: each array begins with the axes layers, b, kv_heads, length."""
        names = ("keys_lbkte", "values_lbkte", "key_scales_lbkt", "value_scales_lbkt")
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    def split(self, shard: Callable[..., jax.Array] = parallel.shard) -> KVCache:
        """The same, its rows and heads split over the mesh of `jax.set_mesh` by the rules of `parallel.sharding`."""
        return dataclasses.replace(
            self,
            **split_stored(self.stored, shard),
            segments_bt=shard(self.segments_bt, "batch", None),
            positions_b=shard(self.positions_b, "batch"),
        )

    @property
    def length(self) -> int:
        """Slots per row."""
        return self.segments_bt.shape[1]

    def next_positions(self, segments_bs: jax.Array) -> jax.Array:
        """int32 [b, s]: positions of the incoming tokens when the caller gives none; padding repeats its neighbour."""
        real = (segments_bs != 0).astype(jnp.int32)
        return jnp.maximum(self.positions_b[:, None] + jnp.cumsum(real, axis=1) - 1, 0)

    def append_slots(self, segments_bs: jax.Array, positions_bs: jax.Array) -> KVCache:
        """Account for the incoming tokens: their segments, the rows' next positions, the write index."""
        real = segments_bs != 0
        reached = jnp.max(jnp.where(real, positions_bs + 1, 0), axis=1)
        return dataclasses.replace(
            self,
            segments_bt=jax.lax.dynamic_update_slice(self.segments_bt, segments_bs, (0, self.index)),
            positions_b=jnp.maximum(self.positions_b, reached),
            index=self.index + segments_bs.shape[1],
        )

    def keep_first(self, keep_b: jax.Array) -> KVCache:
        """Forget all but the first `keep_b` (int [b]) tokens of each row; their slots are not given back.

        For rows whose positions are their tokens' numbers, as they are when the caller gives none.
        """
        real_bt = self.segments_bt != 0
        late_bt = jnp.cumsum(real_bt, axis=1) > keep_b[:, None]
        return dataclasses.replace(
            self,
            segments_bt=jnp.where(late_bt, 0, self.segments_bt),
            positions_b=jnp.minimum(self.positions_b, keep_b),
        )

    def pick(self, rows_r: jax.Array, keep_r: jax.Array, length: int) -> KVCache:
        """A cache of the rows `rows_r` (int [r]; a row may be taken twice), of each its first `keep_r` tokens.

        They stand side by side from slot 0 on, with no padding between, in `length` slots; `keep_r` as in `keep_first`
        and at most `length`. Works through one layer at a time, to need little memory beside the old and the new cache.
        """
        kept = dataclasses.replace(
            self, segments_bt=self.segments_bt[rows_r], positions_b=self.positions_b[rows_r]
        ).keep_first(keep_r)
        order_rt = jnp.argsort(kept.segments_bt == 0, axis=1, stable=True)[:, :length]
        more = length - order_rt.shape[1]

        def move(layer: Stored) -> Stored:
            moved = {}
            for name, array in layer.items():  # [b, kv_heads, length] or one axis more
                trailing = (1,) * (array.ndim - 3)
                order = order_rt.reshape(order_rt.shape[0], 1, -1, *trailing)
                picked = jnp.take_along_axis(array[rows_r], order, axis=2)
                moved[name] = jnp.pad(picked, [(0, 0), (0, 0), (0, more), *((0, 0) for _ in trailing)])
            return moved

        return KVCache(
            **jax.lax.map(move, self.stored),
            segments_bt=jnp.pad(jnp.take_along_axis(kept.segments_bt, order_rt, axis=1), [(0, 0), (0, more)]),
            positions_b=kept.positions_b,
            index=jnp.max(keep_r).astype(self.index.dtype),
        ).split()

    def grow(self, length: int) -> KVCache:
        """The same cache with `length` slots; the new ones are empty."""
        more = length - self.length

        def pad(array: jax.Array, axis: int) -> jax.Array:
            return jnp.pad(array, [(0, more if at == axis else 0) for at in range(array.ndim)])

        return dataclasses.replace(
            self,
            **{name: pad(array, 3) for name, array in self.stored.items()},
            segments_bt=pad(self.segments_bt, 1),
        ).split()


def write(stored: Stored, layer: jax.Array, index: jax.Array, k_bkse: jax.Array, v_bkse: jax.Array) -> Stored:
    """`stored` with the keys and values of one layer added from slot `index` on, rounded to what it holds."""
    stored = dict(stored)
    for new_bkse, name, scales in (
        (k_bkse, "keys_lbkte", "key_scales_lbkt"),
        (v_bkse, "values_lbkte", "value_scales_lbkt"),
    ):
        if scales in stored:
            new_bkse, scale_bks = quantise(new_bkse)
            stored[scales] = jax.lax.dynamic_update_slice(stored[scales], scale_bks[None], (layer, 0, 0, index))
        new_bkse = new_bkse.astype(stored[name].dtype)
        stored[name] = jax.lax.dynamic_update_slice(stored[name], new_bkse[None], (layer, 0, 0, index, 0))
    return stored


def read(stored: Stored, layer: jax.Array) -> Stored:
    """One layer of `stored`: the same names, without the first axis."""
    return {name: jax.lax.dynamic_index_in_dim(array, layer, keepdims=False) for name, array in stored.items()}


def split_stored(stored: Stored, shard: Callable[..., jax.Array]) -> Stored:
    """Rows and heads over the mesh, as `KVCache.split`."""
    axes = ("layers", "batch", "kv_heads")
    return {name: shard(array, *axes, *[None] * (array.ndim - 3)) for name, array in stored.items()}


def quantise(x_bkse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int8 numbers [b, k, s, e] and float32 scales [b, k, s]: x = number * scale, to half a scale."""
    x_bkse = x_bkse.astype(jnp.float32)
    scale_bks = jnp.max(jnp.abs(x_bkse), axis=-1) / _LARGEST
    whole_bkse = jnp.round(x_bkse / jnp.where(scale_bks == 0, 1, scale_bks)[..., None])
    return whole_bkse.astype(jnp.int8), scale_bks
