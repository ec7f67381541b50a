"""One decoder layer (SPEC 3.2, 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import jax

from aromni_jax.config import ModelConfig
from aromni_jax.model.linear import linear
from aromni_jax.model.norms import head_layer_norm, rms_norm
from aromni_jax.model.parameters import Params
from aromni_jax.model.rope import rotate

# (q [b,s,h,e], k [b,k,s,e], v [b,k,s,e]) -> [b,s,h,e]: attention over these keys, or over a cache that they join.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Shard = Callable[..., jax.Array]


def block(
    layer: Params,
    config: ModelConfig,
    x_bsd: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    attend: Attend,
    shard: Shard,
) -> jax.Array:
    """x [b,s,d] -> [b,s,d]: "pre" h = x + f(norm(x)), "swin" h = x + norm(f(x)), for attention and then for the FFN."""

    def branch(x_bsd: jax.Array, scale_d: jax.Array, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        if config.norm_order == "pre":
            return x_bsd + function(rms_norm(x_bsd, scale_d, config.norm_eps))
        return x_bsd + rms_norm(function(x_bsd), scale_d, config.norm_eps)

    def attention(x_bsd: jax.Array) -> jax.Array:
        return _attention(layer["attention"], config, x_bsd, angles, attend, shard)

    def ffn(x_bsd: jax.Array) -> jax.Array:
        return _swiglu(layer["ffn"], x_bsd, shard)

    x_bsd = branch(x_bsd, layer["attention_norm"]["scale"], attention)
    x_bsd = branch(x_bsd, layer["ffn_norm"]["scale"], ffn)
    return shard(x_bsd, "batch", "seq", None)


def _attention(
    layer: Params,
    config: ModelConfig,
    x_bsd: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    attend: Attend,
    shard: Shard,
) -> jax.Array:
    b, s, d = x_bsd.shape

    def heads(kernel_dhe: jax.Array) -> jax.Array:
        return linear(x_bsd, kernel_dhe.reshape(d, -1), ("embed", "heads")).reshape(b, s, *kernel_dhe.shape[1:])

    q_bshe, k_bske, v_bske = heads(layer["query"]), heads(layer["key"]), heads(layer["value"])
    q_norm, k_norm = layer["query_norm"], layer["key_norm"]
    q_bshe = head_layer_norm(q_bshe, q_norm["scale"], q_norm["bias"], config.qk_norm_eps)
    k_bske = head_layer_norm(k_bske, k_norm["scale"], k_norm["bias"], config.qk_norm_eps)
    q_bshe = shard(rotate(q_bshe, angles).astype(x_bsd.dtype), "batch", "seq", "heads", None)
    k_bske = rotate(k_bske, angles).astype(x_bsd.dtype)
    mixed_bshe = attend(q_bshe, k_bske.swapaxes(1, 2), v_bske.swapaxes(1, 2))
    return linear(mixed_bshe.reshape(b, s, -1), layer["out"].reshape(-1, d), ("heads", "embed"))


def _swiglu(layer: Params, x_bsd: jax.Array, shard: Shard) -> jax.Array:
    gate_bsf, up_bsf = (linear(x_bsd, layer[name], ("embed", "ffn")) for name in ("gate", "up"))
    mixed_bsf = shard(jax.nn.silu(gate_bsf) * up_bsf, "batch", "seq", "ffn")
    return linear(mixed_bsf, layer["down"], ("ffn", "embed"))
