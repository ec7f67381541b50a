"""The key/value cache: an explicit argument and result of `forward`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from aromni_jax.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (after QK-norm and RoPE) and values of every layer, written at one index shared by all rows.

    A slot is real where its segment id is not 0. Rows of different length take part by padding on any side: a token
    given with segment id 0 fills a slot that no real token ever sees and does not advance its row's position.

    Attributes:
      keys_lbkte, values_lbkte: [layers, b, kv_heads, length, head_dim].
      segments_bt: int32 [b, length], 0 = empty or padding.
      positions_b: int32 [b], the position of each row's next real token.
      index: int32 scalar, the next slot to write. Writing past `length` is the caller's error and is not detected.
    """

    keys_lbkte: jax.Array
    values_lbkte: jax.Array
    segments_bt: jax.Array
    positions_b: jax.Array
    index: jax.Array

    @classmethod
    def create(cls, config: ModelConfig, batch: int, length: int, dtype: str | None = None) -> KVCache:
        """Empty cache for `batch` rows of at most `length` slots; `dtype` defaults to the compute dtype."""
        shape = (config.layers, batch, config.kv_heads, length, config.head_dim)
        dtype = dtype or config.compute_dtype
        return cls(
            keys_lbkte=jnp.zeros(shape, dtype),
            values_lbkte=jnp.zeros(shape, dtype),
            segments_bt=jnp.zeros((batch, length), jnp.int32),
            positions_b=jnp.zeros((batch,), jnp.int32),
            index=jnp.zeros((), jnp.int32),
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

        def move(layer_bkte: jax.Array) -> jax.Array:
            moved_rkte = jnp.take_along_axis(layer_bkte[rows_r], order_rt[:, None, :, None], axis=2)
            return jnp.pad(moved_rkte, [(0, 0), (0, 0), (0, more), (0, 0)])

        return KVCache(
            keys_lbkte=jax.lax.map(move, self.keys_lbkte),
            values_lbkte=jax.lax.map(move, self.values_lbkte),
            segments_bt=jnp.pad(jnp.take_along_axis(kept.segments_bt, order_rt, axis=1), [(0, 0), (0, more)]),
            positions_b=kept.positions_b,
            index=jnp.max(keep_r).astype(self.index.dtype),
        )
