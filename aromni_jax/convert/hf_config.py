"""`config.json` of Hugging Face's Chameleon <-> our model config (SPEC 3.1, 3.4)."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from aromni_jax.convert import assets as files
from aromni_jax.convert.fields import Fields
from aromni_jax.convert.foreign import OURS, check_expressible, noted
from aromni_jax.convert.source import Source
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import OFFICIAL_IMAGE_NAME, OFFICIAL_SIZE

# Their key -> ours, for the sizes that every config.json must have.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn_dim",
}
# What this decoder has no switch for: key -> the only value that is the same model.
_FIXED = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
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


def shared_fields(values: Fields) -> dict[str, Any]:
    """The keys of our model config that a config.json has, from its own.

    Raises:
      UserError: another kind of model, a key that is missing or of a wrong kind, or a setting that this decoder lacks.
    """
    kind = values.text("model_type", "")
    if kind != "chameleon":
        raise UserError(f"{values.where}: model_type is {kind!r}; expected 'chameleon' (Chameleon, Anole, AR-Omni)")
    for key, only in _FIXED.items():
        if values.values.get(key) not in (None, only):
            raise UserError(f"{values.where}: {key} is {values.values[key]!r}; this decoder has only {only!r}")
    shared: dict[str, Any] = {ours: values.integer(theirs) for theirs, ours in _SIZES.items()}
    return shared | {
        "kv_heads": values.integer("num_key_value_heads", shared["heads"]),
        "head_dim": values.integer("head_dim", max(1, shared["dim"] // shared["heads"])),
        "norm_order": "swin" if values.boolean("swin_norm", False) else "pre",
        "norm_eps": values.number("rms_norm_eps", 1e-5),
        "rope_theta": _rope_theta(values),
        "max_positions": values.integer("max_position_embeddings", 4096),
    }


def _rope_theta(values: Fields) -> float:
    """transformers 5 moved it into an object, which it prefers; older scaling settings name other models."""
    rope, scaling = values.object("rope_parameters"), values.object("rope_scaling")
    for settings in (rope, scaling):
        kind = settings.text("rope_type", settings.text("type", "default"))
        if kind != "default":
            raise UserError(f"{settings.where}: is of type {kind!r}; this decoder has 'default' only")
        if settings.number("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{settings.where}: partial_rotary_factor is not 1; this decoder turns whole heads")
    return rope.number("rope_theta", values.number("rope_theta", 10_000.0))


def config_json(source: Source, layout: str, dtype: str) -> dict[str, Any]:
    """The config.json of a model for `layout` ("hf" or "hf-reference").

    Raises:
      UserError: the model has what no key of theirs can say.
    """
    config, upstream = source.config, layout == "hf"
    check_expressible(config, source.path, layout)
    before = Fields.read(source.assets[files.HF_CONFIG]).values if files.HF_CONFIG in source.assets else {}
    vocabulary_map = _vocabulary_map(source, before)
    values: dict[str, Any] = {
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        **_FIXED,
        "architectures": ["ChameleonForConditionalGeneration" if upstream else "ChameleonForCausalLM"],
        "model_type": "chameleon",
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": config.max_positions,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "swin_norm": config.norm_order == "swin",
        "bos_token_id": source.vocabulary.bos,  # whatever other files say (SPEC 1.1)
        "eos_token_id": source.vocabulary.eos,
        "pad_token_id": before.get("pad_token_id", source.vocabulary.pad),
        "model_parallel_size": 1,
        "use_cache": True,
        "torch_dtype": dtype,
        "vocabulary_map": vocabulary_map,
        "vq_config": _vq_config(source, before, upstream=upstream),
        OURS: noted(source),
    }
    if upstream:
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
        values["image_token_id"] = vocabulary_map["<image>"]
    return values


def _vocabulary_map(source: Source, before: Mapping[str, Any]) -> dict[str, int]:
    """Token names of a config.json: what was there, or the tokenizer's, or the names of SPEC 1 alone."""
    found = before.get("vocabulary_map")
    if not found and (named := files.token_ids(source.assets)):
        ids = next(iter(named.values()))
        found = {"<image>" if name == "<reserved08707>" else name: number for name, number in ids.items()}
    vocabulary = source.vocabulary
    if not found:
        found = {"<s>": vocabulary.bos, "<pad>": vocabulary.pad, "</s>": vocabulary.eos, "<unk>": vocabulary.unk}
        found |= {"<eoss>": vocabulary.eoi, "<racm3:break>": vocabulary.boi}
        found |= {files.image_name(code): int(vocabulary.image.start + code) for code in range(len(vocabulary.image))}
    # transformers asks for the placeholder of a picture; where a layout has none, the picture's own opening stands in.
    return {"<image>": OFFICIAL_IMAGE_NAME if vocabulary.size == OFFICIAL_SIZE else vocabulary.boi, **found}


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
