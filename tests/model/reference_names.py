"""Test-only bridge between the reference's parameter names and layout and ours (SPEC 3.4, 3.5)."""

import numpy as np

from aromni_jax.config import ModelConfig
from aromni_jax.model import nest

LAYER = {
    "attention_norm/scale": "input_layernorm.weight",
    "ffn_norm/scale": "post_attention_layernorm.weight",
    "ffn/gate": "mlp.gate_proj.weight",
    "ffn/up": "mlp.up_proj.weight",
    "ffn/down": "mlp.down_proj.weight",
}
HEADS = {"query": ("q", "heads"), "key": ("k", "kv_heads")}


def model_config(reference: dict) -> ModelConfig:
    return ModelConfig(
        vocab_size=reference["vocab_size"],
        dim=reference["hidden_size"],
        layers=reference["num_hidden_layers"],
        heads=reference["num_attention_heads"],
        kv_heads=reference["num_key_value_heads"],
        head_dim=reference["hidden_size"] // reference["num_attention_heads"],
        ffn_dim=reference["intermediate_size"],
        norm_order="swin" if reference["swin_norm"] else "pre",
        norm_eps=reference["rms_norm_eps"],
        rope_theta=reference["rope_theta"],
    )


def halves(head_dim: int) -> np.ndarray:
    """Interleaved pairs -> first halves, then second halves."""
    return np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])


def import_params(weights: dict[str, np.ndarray], config: ModelConfig) -> dict:
    order = halves(config.head_dim)

    def layer(i: int) -> dict[str, np.ndarray]:
        w = {k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items() if f"layers.{i}." in k}
        out = {path: w[name].T for path, name in LAYER.items()}
        for ours, (letter, count) in HEADS.items():
            heads = getattr(config, count)
            rows = w[f"self_attn.{letter}_proj.weight"].reshape(heads, config.head_dim, config.dim)
            out[f"attention/{ours}"] = rows[:, order].transpose(2, 0, 1)
            for part, theirs in (("scale", "weight"), ("bias", "bias")):
                vector = w[f"self_attn.{letter}_norm.{theirs}"][order]
                out[f"attention/{ours}_norm/{part}"] = np.tile(vector, (heads, 1))
        rows = w["self_attn.v_proj.weight"].reshape(config.kv_heads, config.head_dim, config.dim)
        out["attention/value"] = rows.transpose(2, 0, 1)
        rows = w["self_attn.o_proj.weight"].reshape(config.dim, config.heads, config.head_dim)
        out["attention/out"] = rows.transpose(1, 2, 0)
        return out

    layers = [layer(i) for i in range(config.layers)]
    flat = {f"layers/{path}": np.stack([one[path] for one in layers]) for path in layers[0]}
    flat["embedder/embedding"] = weights["model.embed_tokens.weight"]
    flat["final_norm/scale"] = weights["model.norm.weight"]
    flat["head/kernel"] = weights["lm_head.weight"].T
    return nest(flat)


def export_gradient(name: str, gradients: dict, config: ModelConfig) -> np.ndarray:
    """The reference's gradient of one parameter from ours; vectors shared by heads sum over them."""
    flat = {"model.embed_tokens.weight": gradients["embedder"]["embedding"]}
    flat["model.norm.weight"] = gradients["final_norm"]["scale"]
    flat["lm_head.weight"] = gradients["head"]["kernel"].T
    if name in flat:
        return np.asarray(flat[name])
    _, _, number, rest = name.split(".", 3)
    layer, i, back = gradients["layers"], int(number), np.argsort(halves(config.head_dim))
    for path, theirs in LAYER.items():
        if rest == theirs:
            group, part = path.split("/")
            return np.asarray(layer[group][part][i]).T
    attention = layer["attention"]
    for ours, (letter, _) in HEADS.items():
        if rest == f"self_attn.{letter}_proj.weight":
            return np.asarray(attention[ours][i]).transpose(1, 2, 0)[:, back].reshape(-1, config.dim)
        for part, theirs in (("scale", "weight"), ("bias", "bias")):
            if rest == f"self_attn.{letter}_norm.{theirs}":
                return np.asarray(attention[f"{ours}_norm"][part][i]).sum(0)[back]
    if rest == "self_attn.v_proj.weight":
        return np.asarray(attention["value"][i]).transpose(1, 2, 0).reshape(-1, config.dim)
    assert rest == "self_attn.o_proj.weight", name
    return np.asarray(attention["out"][i]).transpose(2, 0, 1).reshape(config.dim, -1)
