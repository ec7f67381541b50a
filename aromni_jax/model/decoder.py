"""The decoder: tokens to final hidden states, with or without a key/value cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from aromni_jax import parallel
from aromni_jax.config import ModelConfig
from aromni_jax.errors import UserError
from aromni_jax.model.attention import Visibility, backend
from aromni_jax.model.block import Shard, block
from aromni_jax.model.cache import KVCache
from aromni_jax.model.norms import rms_norm
from aromni_jax.model.parameters import Params, flatten, init_parameter, nest, parameter_table
from aromni_jax.model.rope import rotary_angles

_REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def forward(
    params: Params,
    config: ModelConfig,
    tokens_bs: jax.Array,
    positions_bs: jax.Array | None = None,
    segment_ids_bs: jax.Array | None = None,
    cache: KVCache | None = None,
    *,
    shard: Shard = parallel.shard,
) -> tuple[jax.Array, KVCache | None]:
    """Final hidden states of a batch of rows, or of the next tokens of rows whose past is in `cache`.

    Args:
      params: nested dict of `parameter_table(config)`.
      config: static; hashable.
      tokens_bs: int [b, s].
      positions_bs: int [b, s], used by RoPE only (the mask goes by slot and segment). Default: 0..s-1 without a cache;
        with one, each row counts on from its last real token.
      segment_ids_bs: int [b, s]; tokens see earlier tokens of the same segment; 0 = padding. Default: one segment.
      cache: appended to at its write index, for prefill (s = prompt length) and decoding (s = 1) alike.
      shard: constrains activations by logical axes; a partial of `parallel.shard` brings other rules.

    Returns:
      hidden_bsd after the final norm, in the compute dtype, and the cache with the tokens added (None without one).
      Hidden states of padding are finite and mean nothing.

    Raises:
      UserError: the attention backend is unknown or cannot mask segments.
    """
    if cache is not None:
        if segment_ids_bs is None:
            segment_ids_bs = jnp.ones(tokens_bs.shape, jnp.int32)
        segment_ids_bs = segment_ids_bs.astype(jnp.int32)
        if positions_bs is None:
            positions_bs = cache.next_positions(segment_ids_bs)
        slots_s = cache.index + jnp.arange(tokens_bs.shape[1])
        cache = cache.append_slots(segment_ids_bs, positions_bs)
        visibility = Visibility(slots_s, segment_ids_bs, cache.segments_bt)
        keys = cache.length
    else:
        slots_s = jnp.arange(tokens_bs.shape[1])
        if positions_bs is None:
            positions_bs = jnp.broadcast_to(slots_s[None], tokens_bs.shape)
        visibility = Visibility(slots_s, segment_ids_bs, segment_ids_bs)
        keys = tokens_bs.shape[1]
    attention = backend(config.attention, segmented=visibility.query_segments_bs is not None)
    prepared = attention.prepare(visibility, keys)
    angles = rotary_angles(positions_bs, config.head_dim, config.rope_theta)
    # Whole along d before the lookup: a table split over fsdp in d would meet rows split over fsdp in b.
    table_vd = shard(params["embedder"]["embedding"].astype(config.compute_dtype), "vocab", None)
    x_bsd = table_vd[tokens_bs]
    x_bsd = shard(x_bsd, "batch", "seq", None)

    if cache is None:

        def step(x_bsd: jax.Array, layer: Params) -> tuple[jax.Array, None]:
            def attend(q_bshe: jax.Array, k_bkse: jax.Array, v_bkse: jax.Array) -> jax.Array:
                return attention.attend(q_bshe, k_bkse, v_bkse, prepared)

            return block(layer, config, x_bsd, angles, attend, shard), None

        if config.remat != "none":
            step = jax.checkpoint(step, policy=_REMAT_POLICIES[config.remat], prevent_cse=not config.scan_layers)
        x_bsd, _ = _over_layers(step, x_bsd, params["layers"], config)
    else:
        x_bsd, cache = _cached_layers(
            params, config, x_bsd, cache, slots_s[0], angles, attention.attend, prepared, shard
        )
    return rms_norm(x_bsd, params["final_norm"]["scale"], config.norm_eps), cache


def _over_layers(
    step: Callable[[Any, Any], tuple[Any, None]], carry: Any, stacked: Any, config: ModelConfig
) -> tuple[Any, None]:
    """`jax.lax.scan`, or the same as straight-line code when `config.scan_layers` is off."""
    return jax.lax.scan(step, carry, stacked, unroll=1 if config.scan_layers else config.layers)


def _cached_layers(
    params: Params,
    config: ModelConfig,
    x_bsd: jax.Array,
    cache: KVCache,
    index: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    attend_keys: Callable[..., jax.Array],
    prepared: jax.Array,
    shard: Shard,
) -> tuple[jax.Array, KVCache]:
    """All layers over the cache. The whole cache is carried, so that XLA writes the new slots in place."""

    def step(carry: tuple[jax.Array, jax.Array, jax.Array], xs: tuple[Params, jax.Array]) -> tuple[Any, None]:
        x_bsd, keys_lbkte, values_lbkte = carry
        layer, number = xs
        written: dict[str, jax.Array] = {}

        def attend(q_bshe: jax.Array, k_bkse: jax.Array, v_bkse: jax.Array) -> jax.Array:
            zero = jnp.zeros((), index.dtype)
            start = (number, zero, zero, index, zero)
            for name, stack, new in (("keys", keys_lbkte, k_bkse), ("values", values_lbkte, v_bkse)):
                written[name] = jax.lax.dynamic_update_slice(stack, new[None].astype(stack.dtype), start)
            k_bkte, v_bkte = (
                jax.lax.dynamic_index_in_dim(written[name], number, keepdims=False).astype(q_bshe.dtype)
                for name in ("keys", "values")
            )
            return attend_keys(q_bshe, k_bkte, v_bkte, prepared)

        x_bsd = block(layer, config, x_bsd, angles, attend, shard)
        return (x_bsd, written["keys"], written["values"]), None

    carry = (x_bsd, cache.keys_lbkte, cache.values_lbkte)
    numbers_l = jnp.arange(config.layers, dtype=index.dtype)
    (x_bsd, keys_lbkte, values_lbkte), _ = _over_layers(step, carry, (params["layers"], numbers_l), config)
    return x_bsd, dataclasses.replace(cache, keys_lbkte=keys_lbkte, values_lbkte=values_lbkte)


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., v] of final hidden states [..., d]; the product is accumulated in float32."""
    kernel_dv = params["head"]["kernel"].astype(config.compute_dtype)
    return jnp.einsum("...d,dv->...v", hidden, kernel_dv, preferred_element_type=jnp.float32)


class Decoder(nnx.Module):
    """Flax NNX declaration of the decoder: the same tree as `parameter_table`, each leaf an `nnx.Param` with `axes`.

    `graphdef, state = nnx.split(Decoder(config, key))` once; the program works on `nnx.to_pure_dict(state)`.
    `nnx.eval_shape(lambda: Decoder(config, key))` declares it without memory.
    """

    def __init__(self, config: ModelConfig, key: jax.Array) -> None:
        self.config = config
        table = parameter_table(config)
        variables = {path: nnx.Param(init_parameter(path, spec, key), axes=spec.axes) for path, spec in table.items()}
        for name, group in nest(variables).items():
            setattr(self, name, _Group(group))

    def __call__(
        self,
        tokens_bs: jax.Array,
        positions_bs: jax.Array | None = None,
        segment_ids_bs: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """float32 logits_bsv and final hidden_bsd; see `forward`."""
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        hidden_bsd, _ = forward(params, self.config, tokens_bs, positions_bs, segment_ids_bs)
        return logits(params, self.config, hidden_bsd), hidden_bsd


class _Group(nnx.Module):
    """A named group of parameters and of further groups."""

    def __init__(self, members: dict[str, Any]) -> None:
        for name, member in members.items():
            setattr(self, name, _Group(member) if isinstance(member, dict) else member)


def check_params(params: Params, config: ModelConfig, where: str) -> None:
    """Compare a parameter tree with the table.

    Raises:
      UserError: naming the first parameter that is missing, unknown or of another shape.
    """
    found, table = flatten(params), parameter_table(config)
    for path in table.keys() | found.keys():
        if path not in found:
            raise UserError(f"{where}: parameter {path} is missing")
        if path not in table:
            raise UserError(f"{where}: parameter {path} is unknown to this model configuration")
        if tuple(found[path].shape) != table[path].shape:
            raise UserError(f"{where}: parameter {path} has shape {found[path].shape}, expected {table[path].shape}")
