"""`config.json` of Hugging Face's Chameleon <-> our model config (SPEC 3.1, 3.4)."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from aromni_jax.config import ModelConfig
from aromni_jax.convert import assets as files
from aromni_jax.convert.source import OURS, Source, ours, with_ours
from aromni_jax.errors import UserError

# Their key -> ours. Everything that both say, in one place.
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "ffn_dim",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
    "max_position_embeddings": "max_positions",
}
_DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "max_position_embeddings": 4096}
# What this decoder has no switch for: key -> the only value that is the same model.
_FIXED = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "qk_layernorm": True,
}
# The VQ model's settings have two names each (SPEC 3.4): AR-Omni's and Anole's, transformers'.
_VQ_KEYS = {"double_z": "double_latent", "z_channels": "latent_channels"}
_YAML_KEYS = {
    "ch": "base_channels",
    "out_ch": "out_channels",
    "n_embed": "num_embeddings",
    "ch_mult": "channel_multiplier",
}
_TINY_VQ = {"embed_dim": 1, "num_embeddings": 1, "latent_channels": 32, "resolution": 8, "base_channels": 32,
            "channel_multiplier": [1], "num_res_blocks": 1}  # fmt: skip


def model_config(values: Mapping[str, Any], dtype: np.dtype, qk_norm_groups: int, file: pathlib.Path) -> ModelConfig:
    """Our config from the keys of a config.json; `dtype` and `qk_norm_groups` are those of the tensors.

    Raises:
      UserError: another kind of model, a key that is missing, or a setting that this decoder does not have.
    """
    kind = values.get("model_type")
    if kind != "chameleon":
        raise UserError(f"{file}: model_type is {kind!r}; expected 'chameleon' (Chameleon, Anole, AR-Omni)")
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"{file}: rope_parameters.rope_type is {rope['rope_type']!r}; only 'default' is supported")
    known = {**_DEFAULTS, **({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}), **values}
    if known.get("num_key_value_heads") is None:
        known["num_key_value_heads"] = known.get("num_attention_heads")
    for key, only in _FIXED.items():
        if known.get(key, only) != only:
            raise UserError(f"{file}: {key} is {known[key]!r}; this decoder has only {only!r}")
    missing = [key for key in _KEYS if known.get(key) is None]
    if missing:
        raise UserError(f"{file}: key {missing[0]} is missing")
    shared = {our: known[their] for their, our in _KEYS.items()}
    head_dim = known.get("head_dim") or shared["dim"] // max(1, shared["heads"])
    norm_order = "swin" if known.get("swin_norm") else "pre"
    noted = (values.get(OURS) or {}).get("model", {})
    return with_ours(
        {**shared, "head_dim": head_dim, "norm_order": norm_order}, noted, dtype, qk_norm_groups, str(file)
    )


def config_json(source: Source, layout: str, dtype: str) -> dict[str, Any]:
    """The config.json of a model for `layout` ("hf" or "hf-reference").

    Raises:
      UserError: a head size that follows from no key of theirs.
    """
    config, upstream = source.config, layout == "hf"
    if config.head_dim * config.heads != config.dim:
        raise UserError(
            f"{source.path}: head_dim {config.head_dim} is not dim / heads ({config.dim} / {config.heads}), which is "
            "all that a Hugging Face Chameleon can have"
        )
    before = files.read_object(source.assets[files.HF_CONFIG]) if files.HF_CONFIG in source.assets else {}
    values: dict[str, Any] = {
        **{their: getattr(config, our) for their, our in _KEYS.items()},
        **_FIXED,
        "architectures": ["ChameleonForConditionalGeneration" if upstream else "ChameleonForCausalLM"],
        "model_type": "chameleon",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "swin_norm": config.norm_order == "swin",
        "bos_token_id": source.vocabulary.bos,  # whatever other files say (SPEC 1.1)
        "eos_token_id": source.vocabulary.eos,
        "pad_token_id": before.get("pad_token_id", source.vocabulary.pad),
        "model_parallel_size": 1,
        "use_cache": True,
        "torch_dtype": dtype,
        "vocabulary_map": _vocabulary_map(source, before),
        "vq_config": _vq_config(source, before, upstream=upstream),
        OURS: {
            "model": ours(config),
            "vocabulary": source.vocabulary.to_dict(),
            "metadata": dict(source.metadata),
        },
    }
    if upstream:
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
        values["image_token_id"] = values["vocabulary_map"]["<image>"]
    return values


def _vocabulary_map(source: Source, before: Mapping[str, Any]) -> dict[str, int]:
    """Token names of a config.json: what was there, or the tokenizer's, or the names of SPEC 1 alone."""
    found = before.get("vocabulary_map")
    if not found and (named := files.token_ids(source.assets)):
        found = {"<image>" if name == "<reserved08707>" else name: number for name, number in named[0].items()}
    vocabulary = source.vocabulary
    if not found:
        found = {"<s>": vocabulary.bos, "<pad>": vocabulary.pad, "</s>": vocabulary.eos, "<unk>": vocabulary.unk}
        found |= {"<eoss>": vocabulary.eoi, "<racm3:break>": vocabulary.boi}
        found |= {files.image_name(code): int(vocabulary.image.start + code) for code in range(len(vocabulary.image))}
    # transformers asks for the placeholder of a picture; where a layout has none, the picture's own opening stands in.
    return {"<image>": 8711 if vocabulary.size == 65536 else vocabulary.boi, **found}


def _vq_config(source: Source, before: Mapping[str, Any], *, upstream: bool) -> dict[str, Any]:
    """Settings of the VQ encoder under the names of the layout; a tiny one where the model brings none."""
    found: dict[str, Any]
    if before.get("vq_config"):
        found = dict(before["vq_config"])
    elif "vqgan.yaml" in source.assets:
        found = _from_yaml(source.assets["vqgan.yaml"])
    else:
        found = dict(_TINY_VQ)
    found.setdefault("model_type", "chameleon_vqgan")
    renames = _VQ_KEYS if upstream else {new: old for old, new in _VQ_KEYS.items()}
    return {renames.get(key, key): value for key, value in found.items()}


def _from_yaml(file: pathlib.Path) -> dict[str, Any]:
    import yaml

    try:
        params = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["params"]
        found = {**params, **params["ddconfig"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not the settings of a VQGAN ({error!r})") from None
    dropped = ("ddconfig", "lossconfig", "ckpt_path", "monitor")
    plain: dict[str, Any] = json.loads(
        json.dumps({_YAML_KEYS.get(k, k): v for k, v in found.items() if k not in dropped})
    )
    return plain
