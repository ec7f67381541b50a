"""One decoder layer (SPEC 3.2, 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from aromni_jax.config import ModelConfig
from aromni_jax.model.linear import Axes, linear
from aromni_jax.model.norms import head_layer_norm, rms_norm
from aromni_jax.model.parameters import ADAPTER, Params
from aromni_jax.model.rope import rotate

# (q [b,s,h,e], k [b,k,s,e], v [b,k,s,e]) -> [b,s,h,e]: attention over these keys, or over a cache that they join.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Shard = Callable[..., jax.Array]
PROJECTED = ("query", "key", "value")  # names of these products, for a policy of what is kept


def block(
    layer: Params,
    config: ModelConfig,
    x_bsd: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    attend: Attend,
    shard: Shard,
    form: str = "bshe",
) -> jax.Array:
    """x [b,s,d] -> [b,s,d]: "pre" h = x + f(norm(x)), "swin" h = x + norm(f(x)), for attention and then for the FFN.

    `form` is the order of axes in which queries and keys are made; `angles` are `rotary_angles` of it.
    """

    def branch(x_bsd: jax.Array, scale_d: jax.Array, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        if config.norm_order == "pre":
            return x_bsd + function(rms_norm(x_bsd, scale_d, config.norm_eps))
        return x_bsd + rms_norm(function(x_bsd), scale_d, config.norm_eps)

    def attention(x_bsd: jax.Array) -> jax.Array:
        return _attention(layer["attention"], config, x_bsd, angles, attend, shard, form)

    def ffn(x_bsd: jax.Array) -> jax.Array:
        return _swiglu(layer["ffn"], config, x_bsd, shard)

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
    form: str,
) -> jax.Array:
    def heads(name: str, form: str) -> jax.Array:
        made = _product(layer, name, config, x_bsd, ("embed", "heads", "head_dim"), f"bsd,dhe->{form}")
        return checkpoint_name(made, name)

    def turned(name: str) -> jax.Array:
        norm = layer[f"{name}_norm"]
        normed = head_layer_norm(heads(name, form), norm["scale"], norm["bias"], config.qk_norm_eps, form)
        return rotate(normed, angles, form).astype(x_bsd.dtype)

    q_bshe = shard(jnp.einsum(f"{form}->bshe", turned("query")), "batch", "seq", "heads", None)
    k_bkse = jnp.einsum(f"{form}->bhse", turned("key"))
    mixed_bshe = attend(q_bshe, k_bkse, heads("value", "bshe").swapaxes(1, 2))
    return _product(layer, "out", config, mixed_bshe, ("heads", "head_dim", "embed"), "bshe,hed->bsd")


def _swiglu(layer: Params, config: ModelConfig, x_bsd: jax.Array, shard: Shard) -> jax.Array:
    gate_bsf, up_bsf = (
        _product(layer, name, config, x_bsd, ("embed", "ffn"), "bsd,df->bsf") for name in ("gate", "up")
    )
    mixed_bsf = shard(jax.nn.silu(gate_bsf) * up_bsf, "batch", "seq", "ffn")
    return _product(layer, "down", config, mixed_bsf, ("ffn", "embed"), "bsf,fd->bsd")


def _product(layer: Params, name: str, config: ModelConfig, x: jax.Array, axes: Axes, equation: str) -> jax.Array:
    """x through a matrix of the layer (see `linear`), and through its adapter where it has one."""
    y = linear(x, layer[name], axes, equation)
    adapter = layer.get(name + ADAPTER)
    if adapter is None:
        return y
    of_x, of_kernel, of_y = equation.replace("->", ",").split(",")
    inputs = len(set(of_x) & set(of_kernel))  # axes of the kernel, the first ones
    low_bsr = linear(x, adapter["a"], (*axes[:inputs], "rank"), f"{of_x},{of_kernel[:inputs]}r->bsr")
    added = linear(low_bsr, adapter["b"], ("rank", *axes[inputs:]), f"bsr,r{of_kernel[inputs:]}->{of_y}")
    return y + config.lora.scale * added
