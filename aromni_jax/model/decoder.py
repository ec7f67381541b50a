"""The decoder: tokens to final hidden states, with or without a key/value cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from aromni_jax import parallel
from aromni_jax.config import ModelConfig
from aromni_jax.errors import UserError
from aromni_jax.model.attention import backend
from aromni_jax.model.block import PROJECTED, Shard, block
from aromni_jax.model.cache import KVCache, LayerCache
from aromni_jax.model.cached import cached_attend
from aromni_jax.model.embedding import embed
from aromni_jax.model.norms import rms_norm
from aromni_jax.model.parameters import Params, flatten, init_parameter, nest, parameter_table
from aromni_jax.model.plain import Visibility, dense_mask
from aromni_jax.model.rope import rotary_angles

Layers = tuple[Params, ...]
_INPUT = "layer_input"
_REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "qkv": jax.checkpoint_policies.save_only_these_names(*PROJECTED),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def forward(
    params: Params,
    config: ModelConfig,
    tokens_bs: jax.Array,
    positions_bs: jax.Array | None = None,
    segment_ids_bs: jax.Array | None = None,
    cache: KVCache | None = None,
    *,
    fresh: bool = False,
    shard: Shard = parallel.shard,
) -> tuple[jax.Array, KVCache | None]:
    """Final hidden states of a batch of rows, or of the next tokens of rows whose past is in `cache`.

    Args:
      params: nested dict of `parameter_table(config)`; with a cache best from `split_layers`.
      config: static; hashable.
      tokens_bs: int [b, s].
      positions_bs: int [b, s], used by RoPE only (the mask goes by slot and segment). Default: 0..s-1 without a cache;
        with one, each row counts on from its last real token.
      segment_ids_bs: int [b, s]; tokens see earlier tokens of the same segment; 0 = padding. Default: one segment.
      cache: appended to at its write index, for prefill (s = prompt length) and decoding (s = 1) alike.
      fresh: the cache holds nothing yet: the tokens see each other alone, by the configured attention.
      shard: constrains activations by logical axes; a partial of `parallel.shard` brings other rules.

    Returns:
      hidden_bsd after the final norm, in the compute dtype, and the cache with the tokens added (None without one).
      Hidden states of padding are finite and mean nothing.

    Raises:
      UserError: the attention backend is unknown or cannot mask segments.
    """
    fed_bs = jnp.ones(tokens_bs.shape, jnp.int32) if segment_ids_bs is None else segment_ids_bs  # to a cache
    if positions_bs is None:
        rows_bs = jnp.broadcast_to(jnp.arange(tokens_bs.shape[1])[None], tokens_bs.shape)
        positions_bs = rows_bs if cache is None else cache.next_positions(fed_bs)
    x_bsd = embed(params["embedder"]["embedding"], tokens_bs, config.compute_dtype)
    x_bsd = shard(x_bsd, "batch", "seq", None)
    if cache is None:
        x_bsd = _row_layers(params["layers"], config, x_bsd, positions_bs, segment_ids_bs, shard)
    else:
        layers = split_layers(params)["layers"]
        x_bsd, cache = _cached_layers(layers, config, x_bsd, positions_bs, fed_bs, cache, fresh, shard)
    return rms_norm(x_bsd, params["final_norm"]["scale"], config.norm_eps), cache


def _row_layers(
    layers: Params,
    config: ModelConfig,
    x_bsd: jax.Array,
    positions_bs: jax.Array,
    segment_ids_bs: jax.Array | None,
    shard: Shard,
) -> jax.Array:
    """All layers over whole rows, with the configured attention backend and recomputation policy."""
    length = x_bsd.shape[1]
    attention = backend(config.attention, segmented=segment_ids_bs is not None)
    prepared = attention.prepare(Visibility(jnp.arange(length), segment_ids_bs, segment_ids_bs), length)
    form = attention.form()
    angles = rotary_angles(positions_bs, config.head_dim, config.rope_theta, form)

    def attend(q_bshe: jax.Array, k_bkse: jax.Array, v_bkse: jax.Array) -> jax.Array:
        return attention.attend(q_bshe, k_bkse, v_bkse, prepared)

    def step(x_bsd: jax.Array, layer: Params) -> tuple[jax.Array, None]:
        return block(layer, config, checkpoint_name(x_bsd, _INPUT), angles, attend, shard, form), None

    looped = config.scan_layers and parallel.loops_keep_order()
    if config.remat != "none":
        step = jax.checkpoint(step, policy=_REMAT_POLICIES[config.remat], prevent_cse=not looped)
    x_bsd, _ = jax.lax.scan(step, x_bsd, layers, unroll=1 if looped else config.layers)
    return x_bsd


def _cached_layers(
    layers: Layers,
    config: ModelConfig,
    x_bsd: jax.Array,
    positions_bs: jax.Array,
    segment_ids_bs: jax.Array,
    cache: KVCache,
    fresh: bool,
    shard: Shard,
) -> tuple[jax.Array, KVCache]:
    """All layers over the cache. Unless it is `fresh`, with the reference attention: keys are mostly in the past.

    Unrolled: a loop would copy every layer's weights out of the stacked ones at each token (see `split_layers`).
    """
    index, length = cache.index, cache.length
    slots_s = index + jnp.arange(x_bsd.shape[1], dtype=index.dtype)
    kept = cache.layers
    cache = cache.append_slots(segment_ids_bs.astype(jnp.int32), positions_bs)
    attention = backend(config.attention, segmented=True)
    if fresh:
        among = x_bsd.shape[1]
        prepared = attention.prepare(Visibility(jnp.arange(among), segment_ids_bs, segment_ids_bs), among)
    else:
        mask_bst = dense_mask(Visibility(slots_s, segment_ids_bs, cache.segments_bt), length)
    angles = rotary_angles(positions_bs, config.head_dim, config.rope_theta)
    filled = []
    for layer, past in zip(layers, kept, strict=True):

        def attend(q_bshe: jax.Array, k_bkse: jax.Array, v_bkse: jax.Array, past: LayerCache = past) -> jax.Array:
            now = past.write(index, k_bkse, v_bkse).split(shard)
            filled.append(now)
            if fresh:
                return attention.attend(q_bshe, k_bkse, v_bkse, prepared)
            return cached_attend(q_bshe, now.keys_bkte, now.values_bkte, mask_bst, now.scales_bkt)

        x_bsd = block(layer, config, x_bsd, angles, attend, shard)
    return x_bsd, dataclasses.replace(cache, layers=tuple(filled)).split(shard)


def split_layers(params: Params, *, consume: bool = False) -> Params:
    """The same parameters, "layers" as a tuple with one tree per layer: what decoding is fast with.

    A CPU or a GPU that needs one layer of a stacked array copies it first, so that every weight is read, written and
    read again for each token. The copies that are made here take the memory of the layers once more; with `consume`
    that of the largest parameter only, as each stacked array is deleted once it has been copied.
    """
    layers = params["layers"]
    if isinstance(layers, tuple):
        return params
    parts: dict[str, tuple[jax.Array, ...]] = {}
    for path, array in flatten(layers).items():
        parts[path] = _apart(array)
        if consume:
            jax.block_until_ready(parts[path])
            array.delete()
    count = len(next(iter(parts.values())))
    return {**params, "layers": tuple(nest({path: part[n] for path, part in parts.items()}) for n in range(count))}


@jax.jit
def _apart(array: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(array[number] for number in range(array.shape[0]))


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
