"""The key/value cache: an explicit argument and result of `forward`, in float32, bfloat16 or int8.

Every layer has arrays of its own: a program that reads one layer of a stacked array copies it first, on CPUs and GPUs.
An int8 cache holds whole numbers from -127 to 127 and one float32 scale per token and head. Nothing multiplies it out:
a query's score is its product with the numbers, times the key's scale; a value's scale goes into the softmax weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from aromni_jax import parallel
from aromni_jax.config import ModelConfig

CACHE_DTYPES = ("float32", "bfloat16", "int8")
_LARGEST = 127  # of the whole numbers; -128 is not used, so that the range is even
_TIME = 2  # the axis of slots, in every array of a layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys (after QK-norm and RoPE) and values of one layer.

    Attributes:
      keys_bkte, values_bkte: [b, kv_heads, length, head_dim]; int8 numbers where there are scales.
      key_scales_bkt, value_scales_bkt: float32 [b, kv_heads, length] of an int8 cache, else None.
    """

    keys_bkte: jax.Array
    values_bkte: jax.Array
    key_scales_bkt: jax.Array | None = None
    value_scales_bkt: jax.Array | None = None

    @classmethod
    def create(cls, shape: tuple[int, int, int, int], dtype: str) -> LayerCache:
        """Zeros; `shape` is that of the keys."""

        def scales() -> jax.Array | None:
            return jnp.zeros(shape[:-1], jnp.float32) if dtype == "int8" else None

        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), scales(), scales())

    def write(self, index: jax.Array, k_bkse: jax.Array, v_bkse: jax.Array) -> LayerCache:
        """With keys and values of new tokens from slot `index` on, rounded to what is kept."""
        new = LayerCache(k_bkse, v_bkse)
        if self.key_scales_bkt is not None:
            (k_bkse, k_scales_bks), (v_bkse, v_scales_bks) = quantise(k_bkse), quantise(v_bkse)
            new = LayerCache(k_bkse, v_bkse, k_scales_bks, v_scales_bks)

        def put(kept: jax.Array, added: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(kept, added.astype(kept.dtype), index, _TIME)

        return jax.tree.map(put, self, new)

    @property
    def scales_bkt(self) -> tuple[jax.Array, jax.Array] | None:
        """Of keys and of values."""
        if self.key_scales_bkt is None or self.value_scales_bkt is None:
            return None
        return self.key_scales_bkt, self.value_scales_bkt

    def split(self, shard: Callable[..., jax.Array]) -> LayerCache:
        """Rows and heads over the mesh, as `KVCache.split`."""
        return jax.tree.map(lambda array: shard(array, "batch", "kv_heads", *[None] * (array.ndim - 2)), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, written at one index shared by all rows.

    A slot is real where its segment id is not 0. Rows of different length take part by padding on any side: a token
    given with segment id 0 fills a slot that no real token ever sees and does not advance its row's position.

    Attributes:
      layers: one per layer.
      segments_bt: int32 [b, length], 0 = empty or padding.
      positions_b: int32 [b], the position of each row's next real token.
      index: int32 scalar, the next slot to write. Writing past `length` is the caller's error and is not detected.
    """

    layers: tuple[LayerCache, ...]
    segments_bt: jax.Array
    positions_b: jax.Array
    index: jax.Array

    @classmethod
    def create(cls, config: ModelConfig, batch: int, length: int, dtype: str | None = None) -> KVCache:
        """Empty cache for `batch` rows of at most `length` slots.

        `dtype` is one of CACHE_DTYPES; None = the compute dtype.
        """
        shape = (batch, config.kv_heads, length, config.head_dim)
        return cls(
            layers=tuple(LayerCache.create(shape, dtype or config.compute_dtype) for _ in range(config.layers)),
            segments_bt=jnp.zeros((batch, length), jnp.int32),
            positions_b=jnp.zeros((batch,), jnp.int32),
            index=jnp.zeros((), jnp.int32),
        ).split()

    def split(self, shard: Callable[..., jax.Array] = parallel.shard) -> KVCache:
        """The same, its rows and heads split over the mesh of `jax.set_mesh` by the rules of `parallel.sharding`."""
        return dataclasses.replace(
            self,
            layers=tuple(layer.split(shard) for layer in self.layers),
            segments_bt=shard(self.segments_bt, "batch", None),
            positions_b=shard(self.positions_b, "batch"),
        )

    @property
    def length(self) -> int:
        """Slots per row."""
        return self.segments_bt.shape[1]

    @property
    def nbytes(self) -> int:
        """Of keys, values and scales."""
        return sum(array.nbytes for array in jax.tree.leaves(self.layers))

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
        and at most `length`.
        """
        kept = dataclasses.replace(
            self, segments_bt=self.segments_bt[rows_r], positions_b=self.positions_b[rows_r]
        ).keep_first(keep_r)
        order_rt = jnp.argsort(kept.segments_bt == 0, axis=1, stable=True)[:, :length]
        real_rt = jnp.take_along_axis(kept.segments_bt, order_rt, axis=1) != 0

        def move(array: jax.Array) -> jax.Array:
            order, real = (jnp.expand_dims(of_rt, (1, *range(3, array.ndim))) for of_rt in (order_rt, real_rt))
            moved = jnp.take_along_axis(array[rows_r], order, axis=_TIME)
            return _longer(jnp.where(real, moved, jnp.zeros((), array.dtype)), length, _TIME)  # as in `put`

        return KVCache(
            layers=jax.tree.map(move, self.layers),
            segments_bt=_longer(jnp.take_along_axis(kept.segments_bt, order_rt, axis=1), length, 1),
            positions_b=kept.positions_b,
            index=jnp.max(keep_r).astype(self.index.dtype),
        ).split()

    def grow(self, length: int) -> KVCache:
        """The same cache with `length` slots; the new ones are empty."""
        return dataclasses.replace(
            self,
            layers=jax.tree.map(lambda array: _longer(array, length, _TIME), self.layers),
            segments_bt=_longer(self.segments_bt, length, 1),
        ).split()

    def put(self, rows_r: jax.Array, other: KVCache, of_r: Sequence[int], index: jax.Array) -> KVCache:
        """This cache with rows `of_r` of `other`, which has no more slots, in place of its rows `rows_r` (int [r]).

        They stand at the slots they had. `index` is the new write index: not below either cache's own.
        """
        rows_of_r = jnp.asarray(of_r)

        def place(old: jax.Array, new: jax.Array) -> jax.Array:
            # To the end: a slot that nobody sees still counts as 0 times what is in it, and that must not be NaN.
            return old.at[rows_r].set(_longer(new[rows_of_r].astype(old.dtype), self.length, _TIME))

        return KVCache(
            layers=jax.tree.map(place, self.layers, other.layers),
            segments_bt=self.segments_bt.at[rows_r].set(_longer(other.segments_bt[rows_of_r], self.length, 1)),
            positions_b=self.positions_b.at[rows_r].set(other.positions_b[rows_of_r]),
            index=index.astype(self.index.dtype),
        ).split()


def quantise(x_bkse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int8 numbers [b, k, s, e] and float32 scales [b, k, s]: x = number * scale, to half a scale."""
    x_bkse = x_bkse.astype(jnp.float32)
    scale_bks = jnp.max(jnp.abs(x_bkse), axis=-1) / _LARGEST
    whole = jnp.round(x_bkse / jnp.where(scale_bks == 0, 1, scale_bks)[..., None])
    return whole.astype(jnp.int8), scale_bks


def _longer(array: jax.Array, length: int, axis: int) -> jax.Array:
    """Filled up with zeros to `length` along `axis`."""
    return jnp.pad(array, [(0, length - size if at == axis else 0) for at, size in enumerate(array.shape)])
