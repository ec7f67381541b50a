"""The parameter table: one row per parameter, from which everything else about parameters is derived.

Shapes, dtypes, logical axes, initialisers and names in other formats stand in `parameter_table` and nowhere else; the
Flax declaration (`model.decoder.Decoder`), abstract trees, initial values, shardings (`parallel`), counts, FLOPs and
`convert` all read it.

Shape suffixes, in the whole package: b batch, s query position, t key position, d model, h heads, k key/value heads,
g query heads per key/value head, e head dim, f feed-forward, v vocabulary, l layers, c codebook width.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from aromni_jax.config import ModelConfig

Params = dict[str, Any]
Init = Literal["normal", "ones", "zeros"]
ADAPTER = "_lora"  # behind a matrix's name: the group of its adapter's parameters "a" and "b"
_STDDEV = 0.02  # of every linear and embedding weight (SPEC 3.1)


@dataclasses.dataclass(frozen=True)
class External:
    """What a parameter is in a PyTorch checkpoint (SPEC 3.4, 3.5); `convert` reads it.

    Attributes:
      hf, meta: its name in a Hugging Face and in a Meta checkpoint; "{}" stands for the number of the layer.
      inputs: how many of its own axes, from the left, are the inputs of a linear map. PyTorch has [out, in], each flat.
      rotary: the head_dim axis is in rotate-half order here and upstream, in interleaved pairs elsewhere.
      parallel: axis of the PyTorch tensor along which Meta's model-parallel ranks share it; None = each has all of it.
      heads: of a QK-norm vector: how many heads it serves.
    """

    hf: str
    meta: str
    inputs: int = 0
    rotary: bool = False
    parallel: int | None = None
    heads: int = 0


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter: shape, dtype, logical name of each axis, how it starts, and what others call it.

    `external` is None for what only training uses: no PyTorch model has it.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    init: Init
    external: External | None = None

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.axes), f"{self.shape} needs one logical axis per dimension, got {self.axes}"


def parameter_table(config: ModelConfig) -> dict[str, ParamSpec]:
    """Path ("layers/attention/query") -> ParamSpec, for every parameter of the decoder (SPEC 3.1 to 3.3).

    Linear weights are [in, out]; parameters of all layers are stacked on axis 0. Query and key rows, and the QK-norm
    vectors, are in rotate-half order: head_dim = [first of every pair, second of every pair].
    """
    d, h, k, e, f = config.dim, config.heads, config.kv_heads, config.head_dim, config.ffn_dim

    def row(
        shape: tuple[int, ...], axes: tuple[str, ...], hf: str = "", meta: str = "", init: Init = "normal", **how: Any
    ) -> ParamSpec:
        return ParamSpec(shape, config.param_dtype, axes, init, External(hf, meta, **how) if hf else None)

    groups = config.qk_norm_groups
    q_norm = (groups or h, e), ("norm" if groups else "heads", "head_dim")
    k_norm = (groups or k, e), ("norm" if groups else "kv_heads", "head_dim")
    layer = {
        "attention_norm/scale": row((d,), ("norm",), "input_layernorm.weight", "attention_norm.weight", "ones"),
        "attention/query": row(
            (d, h, e), ("embed", "heads", "head_dim"), "self_attn.q_proj.weight", "attention.wq.weight",
            inputs=1, rotary=True, parallel=0,
        ),
        "attention/key": row(
            (d, k, e), ("embed", "kv_heads", "head_dim"), "self_attn.k_proj.weight", "attention.wk.weight",
            inputs=1, rotary=True, parallel=0,
        ),
        "attention/value": row(
            (d, k, e), ("embed", "kv_heads", "head_dim"), "self_attn.v_proj.weight", "attention.wv.weight",
            inputs=1, parallel=0,
        ),
        "attention/query_norm/scale": row(
            *q_norm, "self_attn.q_norm.weight", "attention.q_normalization.weight", "ones",
            rotary=True, parallel=0, heads=h,
        ),
        "attention/query_norm/bias": row(
            *q_norm, "self_attn.q_norm.bias", "attention.q_normalization.bias", "zeros",
            rotary=True, parallel=0, heads=h,
        ),
        "attention/key_norm/scale": row(
            *k_norm, "self_attn.k_norm.weight", "attention.k_normalization.weight", "ones",
            rotary=True, parallel=0, heads=k,
        ),
        "attention/key_norm/bias": row(
            *k_norm, "self_attn.k_norm.bias", "attention.k_normalization.bias", "zeros",
            rotary=True, parallel=0, heads=k,
        ),
        "attention/out": row(
            (h, e, d), ("heads", "head_dim", "embed"), "self_attn.o_proj.weight", "attention.wo.weight",
            inputs=2, parallel=1,
        ),
        "ffn_norm/scale": row((d,), ("norm",), "post_attention_layernorm.weight", "ffn_norm.weight", "ones"),
        "ffn/gate": row((d, f), ("embed", "ffn"), "mlp.gate_proj.weight", "feed_forward.w1.weight",
                        inputs=1, parallel=0),
        "ffn/up": row((d, f), ("embed", "ffn"), "mlp.up_proj.weight", "feed_forward.w3.weight",
                      inputs=1, parallel=0),
        "ffn/down": row((f, d), ("ffn", "embed"), "mlp.down_proj.weight", "feed_forward.w2.weight",
                        inputs=1, parallel=1),
    }  # fmt: skip
    table = {
        "embedder/embedding": row(
            (config.vocab_size, d), ("vocab", "embed"), "model.embed_tokens.weight", "tok_embeddings.weight", parallel=1
        )
    }
    for matrix in config.lora.matrices if config.lora.rank else ():
        path = next(path for path in layer if path.endswith(f"/{matrix}"))
        layer |= {f"{path}{ADAPTER}/{name}": spec for name, spec in _adapter(layer[path], config.lora.rank).items()}
    for path, spec in layer.items():
        external = spec.external and dataclasses.replace(
            spec.external, hf="model.layers.{}." + spec.external.hf, meta="layers.{}." + spec.external.meta
        )
        table[f"layers/{path}"] = dataclasses.replace(
            spec, shape=(config.layers, *spec.shape), axes=("layers", *spec.axes), external=external
        )
    table["final_norm/scale"] = row((d,), ("norm",), "model.norm.weight", "norm.weight", "ones")
    table["head/kernel"] = row(
        (d, config.vocab_size), ("embed", "vocab"), "lm_head.weight", "output.weight", inputs=1, parallel=0
    )
    if config.perceptual_dim:
        c = config.perceptual_dim
        table["perceptual/kernel"] = row((d, c), ("embed", "codebook"))
        table["perceptual/bias"] = row((c,), ("codebook",), init="zeros")
    return table


def _adapter(spec: ParamSpec, rank: int) -> dict[str, ParamSpec]:
    """Rows "a" (random) and "b" (zeros: an adapter begins with adding nothing) of a matrix of one layer."""
    external = spec.external
    assert external is not None
    n = external.inputs
    a = External(external.hf.replace(".weight", ".lora_A.weight"), "", inputs=n)
    b = External(external.hf.replace(".weight", ".lora_B.weight"), "", inputs=1, rotary=external.rotary)
    return {
        "a": ParamSpec((*spec.shape[:n], rank), spec.dtype, (*spec.axes[:n], "rank"), "normal", a),
        "b": ParamSpec((rank, *spec.shape[n:]), spec.dtype, ("rank", *spec.axes[n:]), "zeros", b),
    }


def nest(flat: Mapping[str, Any]) -> Params:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `nest`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def init_parameter(path: str, spec: ParamSpec, key: jax.Array) -> jax.Array:
    """Starting value of one parameter. The key is folded with the path, so a new row changes no other row."""
    dtype = jnp.dtype(spec.dtype)
    if spec.init == "ones":
        return jnp.ones(spec.shape, dtype)
    if spec.init == "zeros":
        return jnp.zeros(spec.shape, dtype)
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return (_STDDEV * jax.random.normal(key, spec.shape, jnp.float32)).astype(dtype)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Nested dict of starting values. Traceable: `jax.jit(init_params, static_argnums=0, out_shardings=...)`."""
    return nest({path: init_parameter(path, spec, key) for path, spec in parameter_table(config).items()})


def abstract_params(config: ModelConfig) -> Params:
    """Nested dict of `jax.ShapeDtypeStruct`, without shardings."""
    return nest({path: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for path, spec in parameter_table(config).items()})


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters by group: embedder, attention, ffn, norms, head, perceptual, adapters; and their "total".

    QK-norm vectors count once per group of heads that shares them.
    """
    groups = dict.fromkeys(("embedder", "attention", "ffn", "norms", "head"), 0) | _counts(parameter_table(config))
    return {**groups, "total": sum(groups.values())}


def _counts(table: Mapping[str, ParamSpec]) -> dict[str, int]:
    groups: dict[str, int] = {}
    for path, spec in table.items():
        names = path.removeprefix("layers/").split("/")
        group = "norms" if any(name.endswith("norm") for name in names) else names[0]
        group = "adapters" if any(name.endswith(ADAPTER) for name in names) else group
        groups[group] = groups.get(group, 0) + math.prod(spec.shape)
    return groups


def flops_per_token(
    config: ModelConfig, context: float, *, training: bool = True, trained: Mapping[str, ParamSpec] | None = None
) -> float:
    """Model FLOPs of one token: 2 per weight of every matrix product. Training adds 2 for every weight that is trained,
    and 2 for every product that a gradient passes through, none if only the output head is trained.

    Convention ("causal-aware"): attention counts only the keys a causal query may see, `(context + 1) / 2` of them on
    average for sequences of `context` tokens; the embedding lookup, norms, softmax and recomputation count nothing,
    and neither does the perceptual projection (it is applied by the loss only).

    Args:
      trained: rows of the parameter table that are (`Trained.table`); None = all of them.
    """
    table = parameter_table(config)
    trained = table if trained is None else trained
    weights = _multiplied(table)
    attention = 2 * config.layers * config.heads * config.head_dim * (context + 1) / 2
    forward = 2 * (weights + attention)
    if not training:
        return forward
    passes = any(not path.startswith(("head/", "final_norm/", "perceptual/")) for path in trained)
    return forward + 2 * _multiplied(trained) + (2 * weights + 4 * attention if passes else 0)


def _multiplied(table: Mapping[str, ParamSpec]) -> int:
    """Weights of matrix products."""
    counts = _counts(table)
    return sum(counts.get(group, 0) for group in ("attention", "ffn", "head", "adapters"))
