"""Attention by the accelerator's own kernel: splash attention on TPUs, cuDNN on NVIDIA GPUs, the reference elsewhere.

Which one runs is settled when a program is lowered, so a TPU program can be compiled on a CPU. Neither kernel writes a
whole score matrix to memory; both mask by segment. Shapes a kernel has no form for go to the reference.
"""

from __future__ import annotations

import functools
import math
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aromni_jax.model.balance import collect, deal, dealt_positions
from aromni_jax.model.plain import Visibility, dense_mask, xla_attend
from aromni_jax.parallel import DEFAULT_RULES, joined, platform

_LANES = 128  # of a TPU's vector registers: rows, and blocks of them, are multiples
# Queries and keys per block: the larger, the fewer times keys are read, and 1024 squared is what a v5e's memory holds.
_QUERIES, _KEYS = 1024, 1024


def fused_form() -> str:
    """The order of axes that costs least: with positions last, a TPU norms and turns heads without shuffling lanes."""
    return "bhes" if platform() == "tpu" else "bshe"


def fused_attend(q_bshe: jax.Array, k_bkte: jax.Array, v_bkte: jax.Array, visibility: Visibility) -> jax.Array:
    """As `xla_attend`, for rows against themselves."""
    kernels = {}
    if q_bshe.shape[1] % _LANES == 0 and q_bshe.shape[3] % _LANES == 0:
        kernels["tpu"] = functools.partial(splash_attend, visibility=visibility)
    if q_bshe.dtype == jnp.bfloat16 and jax.default_backend() == "gpu":  # elsewhere it cannot even be traced
        kernels["cuda"] = functools.partial(_cudnn_attend, visibility=visibility)

    def reference(q_bshe: jax.Array, k_bkte: jax.Array, v_bkte: jax.Array) -> jax.Array:
        return xla_attend(q_bshe, k_bkte, v_bkte, dense_mask(visibility, k_bkte.shape[2]))

    return jax.lax.platform_dependent(q_bshe, k_bkte, v_bkte, default=reference, **kernels)


def splash_attend(
    q_bshe: jax.Array, k_bkte: jax.Array, v_bkte: jax.Array, *, visibility: Visibility, interpret: bool = False
) -> jax.Array:
    """On TPUs: rows of a multiple of 128 tokens, as many keys as queries, head_dim a multiple of 128.

    On a mesh every device takes its rows, heads and queries; keys are gathered along the sequence over "context", and
    queries dealt over it (see `balance`) if there are enough of them.
    `interpret` runs the kernel's program on any device, for tests.
    """
    mesh = jax.sharding.get_abstract_mesh()
    q_bhse = q_bshe.swapaxes(1, 2) * q_bshe.shape[3] ** -0.5  # the kernel does not scale
    segments = (visibility.query_segments_bs, visibility.key_segments_bt)
    if mesh.empty:
        kernel = _splash_kernel(q_bhse.shape[1], q_bhse.shape[2], 1, 1, False, interpret)
        return _rows(kernel, q_bhse, k_bkte, v_bkte, *segments).swapaxes(1, 2)

    spec = functools.partial(DEFAULT_RULES.spec, mesh=mesh)
    b, h, s, e = q_bhse.shape
    q_spec = spec("batch", "heads", "seq", None, shape=(b, h, s // _LANES, e))  # the kernel takes whole blocks
    k_spec = spec("batch", "kv_heads", None, None, shape=k_bkte.shape)
    if k_spec[1] != q_spec[1]:  # fewer than devices: every query head brings its own
        k_bkte, v_bkte = (jnp.repeat(x, q_bhse.shape[1] // x.shape[1], axis=1) for x in (k_bkte, v_bkte))
    k_spec = P(k_spec[0], q_spec[1], q_spec[2])
    heads, queries = (_devices(mesh, part) for part in q_spec[1:3])
    even = queries % 2 == 0 and s % (2 * queries * _LANES) == 0
    kernel = _splash_kernel(h, s, heads, queries, even, interpret)
    kernel_spec = kernel.manual_sharding_spec(NamedSharding(mesh, P(q_spec[1], q_spec[2])))
    segment_specs = tuple(
        None if ids is None else P(q_spec[0], part) for ids, part in zip(segments, (q_spec[2], None), strict=True)
    )

    rows = functools.partial(_rows, gathered_over=q_spec[2] if queries > 1 else None, dealt=even)
    mixed_bhse = jax.shard_map(
        rows, in_specs=(kernel_spec, q_spec, k_spec, k_spec, *segment_specs), out_specs=q_spec, check_vma=False
    )(kernel, q_bhse, k_bkte, v_bkte, *segments)
    return mixed_bhse.swapaxes(1, 2)


def _rows(
    kernel: splash.SplashAttentionKernel,
    q_bhse: jax.Array,
    k_bkte: jax.Array,
    v_bkte: jax.Array,
    q_segments_bs: jax.Array | None,
    k_segments_bt: jax.Array | None,
    *,
    gathered_over: str | None = None,
    dealt: bool = False,
) -> jax.Array:
    """The kernel, which knows no batch, on the queries of one device.

    Args:
      gathered_over: mesh axis over which keys are split; gathered here, so that backward every device is sent the sums
        of its own keys only.
      dealt: the kernel is for dealt queries; those given, and the result, are in order.
    """
    if gathered_over is not None:
        k_bkte, v_bkte = (joined(x, gathered_over, axis=2) for x in (k_bkte, v_bkte))
    if dealt:
        q_bhse = deal(q_bhse, 2)
        q_segments_bs = None if q_segments_bs is None else deal(q_segments_bs, 1)
    segments = None
    if q_segments_bs is not None and k_segments_bt is not None:
        segments = splash.SegmentIds(q_segments_bs, k_segments_bt)
    mixed_bhse = cast(jax.Array, jax.vmap(kernel)(q_bhse, k_bkte, v_bkte, segments))
    return collect(mixed_bhse, 2) if dealt else mixed_bhse


def _splash_kernel(
    heads: int, length: int, head_shards: int, query_shards: int, dealt: bool, interpret: bool
) -> splash.SplashAttentionKernel:
    queries, keys = _largest_block(length // (query_shards * (1 + dealt)), _QUERIES), _largest_block(length, _KEYS)
    blocks = splash.BlockSizes(
        block_q=queries, block_kv=keys, block_kv_compute=keys,
        block_q_dkv=queries, block_kv_dkv=keys, block_kv_dkv_compute=keys, use_fused_bwd_kernel=True,
        q_layout=splash.QKVLayout.SEQ_MINOR, k_layout=splash.QKVLayout.SEQ_MINOR,  # as `fused_form`
    )  # fmt: skip
    mask = splash_mask.CausalMask((length, length))
    if dealt:
        mask.q_sequence = dealt_positions(length, query_shards)
    return splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=head_shards,
        q_seq_shards=query_shards,
        interpret=interpret,
    )


def _largest_block(length: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `length`."""
    return next(block for block in range(most, 0, -_LANES) if length % block == 0)


def _devices(mesh: AbstractMesh, part: str | tuple[str, ...] | None) -> int:
    names = (part,) if isinstance(part, str) else part or ()
    return math.prod(mesh.shape[name] for name in names)


def _cudnn_attend(q_bshe: jax.Array, k_bkte: jax.Array, v_bkte: jax.Array, *, visibility: Visibility) -> jax.Array:
    """cuDNN's flash attention. It knows no segments: where there are some, the whole mask is added."""
    k_btke, v_btke = k_bkte.swapaxes(1, 2), v_bkte.swapaxes(1, 2)
    attend = functools.partial(jax.nn.dot_product_attention, q_bshe, k_btke, v_btke, implementation="cudnn")
    if visibility.query_segments_bs is None:
        return attend(is_causal=True)
    return attend(mask=dense_mask(visibility, k_btke.shape[1])[:, None])
