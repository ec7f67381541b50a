"""A VQGAN on disk: the published folder, the Hugging Face Chameleon checkpoint, and our own codec folder.

vqgan.yaml            as taming-transformers writes it: model.params.{embed_dim, n_embed, ddconfig}
vqgan.ckpt            a PyTorch file, or model.safetensors with the same names
config.json           Hugging Face: "vq_config" in place of the yaml; weights under model.vqmodel., encoder only
codec.json            ours (codecs.folder), "architecture": "vqgan"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
import yaml

from aromni_jax.codecs import vq, vqgan_weights
from aromni_jax.codecs.media import write_atomic
from aromni_jax.codecs.tensor_files import INDEX, SINGLE, open_safetensors, open_torch
from aromni_jax.codecs.vqgan import VQGANConfig
from aromni_jax.errors import UserError
from aromni_jax.store import read_json

YAML = "vqgan.yaml"
CHECKPOINT = "vqgan.ckpt"
HF_CONFIG = "config.json"
HF_PREFIX = "model.vqmodel."
_BESIDE_NETWORK = ("n_embed", "embed_dim")  # in the yaml these stand outside of ddconfig
_SUBFOLDERS = ("", "image", "tokenizer")  # the last one is where the published model keeps it (SPEC 3.5)
# Field of VQGANConfig -> its name there.
_SAME = {field.name: field.name for field in dataclasses.fields(VQGANConfig) if field.name != "has_decoder"}
_IN_HF = _SAME | {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "z_channels": "latent_channels",
    "n_embed": "num_embeddings",
}
# What other members of the family can do and this one cannot: name -> the only value that is taken.
_FIXED = {
    "double_z": False,
    "double_latent": False,
    "resamp_with_conv": True,
    "use_linear_attn": False,
    "attn_type": "vanilla",
    "remap": None,
    "give_pre_end": False,
    "tanh_out": False,
}


def locate(path: Path) -> Path | None:
    """The folder at `path` (or in it) that holds a published VQGAN, or a Hugging Face checkpoint; None without one."""
    for folder in (path / name for name in _SUBFOLDERS):
        if (folder / YAML).is_file():
            return folder
    return path if (path / HF_CONFIG).is_file() else None


def describes(path: Path) -> bool:
    """Whether `locate` finds an image codec there, and not the config.json of something else.

    Raises UserError: a config.json that cannot be read.
    """
    folder = locate(path)
    return folder is not None and ((folder / YAML).is_file() or "vq_config" in read_json(folder / HF_CONFIG))


def read(folder: Path) -> tuple[VQGANConfig, vq.Params]:
    """Config and float32 parameters from a folder that `locate` found.

    Raises UserError: a config of another family or with wrong values, weights missing, damaged or of another config.
    """
    return _read_published(folder) if (folder / YAML).is_file() else _read_hf(folder)


def _read_published(folder: Path) -> tuple[VQGANConfig, vq.Params]:
    config = read_yaml(folder / YAML)
    if (folder / SINGLE).is_file():
        tensors = open_safetensors(folder / SINGLE)
    elif (folder / CHECKPOINT).is_file():
        tensors = open_torch(folder / CHECKPOINT)
    else:
        raise UserError(f"{folder} holds {YAML}, but neither {CHECKPOINT} nor {SINGLE}; fetch the weights too")
    return config, vqgan_weights.import_params(tensors, config, YAML)


def _read_hf(folder: Path) -> tuple[VQGANConfig, vq.Params]:
    where = folder / HF_CONFIG
    values = read_json(where)
    if not isinstance(values.get("vq_config"), dict):
        raise UserError(f"{where} has no vq_config: it describes no Chameleon with its image codec")
    config = parse_hf_config(values["vq_config"], where)
    if not any((folder / name).is_file() for name in (INDEX, SINGLE)):
        raise UserError(f"{folder} holds neither {INDEX} nor {SINGLE}: save the model as safetensors")
    tensors = open_safetensors(folder, HF_PREFIX).below(HF_PREFIX)
    if not tensors.shapes:
        raise UserError(f"{folder} holds no {HF_PREFIX}* weights: it was saved without its image codec")
    return config, vqgan_weights.import_params(tensors, config, HF_CONFIG)


def read_yaml(path: Path) -> VQGANConfig:
    """`vqgan.yaml` -> config; the settings of its training are passed over."""
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        values = {**params, **params["ddconfig"]}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path} ({' '.join(str(error).split())[:120]}); fetch it again") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} has no model.params.ddconfig: it describes no VQGAN") from error
    config = parse_config(values, _SAME, path)
    if values.get("out_ch", config.in_channels) != config.in_channels:
        raise UserError(f"{path}: out_ch is {values['out_ch']}, in_channels {config.in_channels}; wanted: the same")
    return config


def parse_hf_config(values: Mapping[str, Any], where: Path) -> VQGANConfig:
    """`vq_config` of Hugging Face, which leaves out what is as published; the reference's copy says z_channels."""
    names = _IN_HF | ({"z_channels": "z_channels"} if "z_channels" in values else {})
    return parse_config(values, names, where, all_given=False, has_decoder=False)


def read_card_config(values: Mapping[str, Any], where: Path) -> VQGANConfig:
    """The config in our own `codec.json`."""
    return parse_config(values, _SAME, where, has_decoder=values.get("has_decoder") is not False)


def parse_config(
    values: Mapping[str, Any],
    names: Mapping[str, str],
    where: Path,
    *,
    all_given: bool = True,
    has_decoder: bool = True,
) -> VQGANConfig:
    """Config from a mapping of another program's making.

    Args:
      names: field of VQGANConfig -> its name in `values`.
      all_given: whether a missing value is an error; if not, it is that of the published network.

    Raises UserError: a wrong value, or an option that this network has not.
    """
    for option, value in _FIXED.items():
        if values.get(option, value) != value:
            raise UserError(f"{where}: {option} is {values[option]}; this codec takes {value} only")
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(VQGANConfig):
        name = names.get(field.name)
        if name is None or (values.get(name) is None and not all_given):
            continue
        if values.get(name) is None:
            raise UserError(f"{where} does not say {name}")
        fields[field.name] = _numbers(values[name], isinstance(field.default, tuple), f"{where}: {name}")
    try:
        return VQGANConfig(**fields, has_decoder=has_decoder)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _numbers(value: Any, many: bool, where: str) -> int | tuple[int, ...]:
    numbers = value if many else [value]
    if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
        raise UserError(f"{where} is {value!r}; wanted: {'a list of whole numbers' if many else 'a whole number'}")
    return tuple(numbers) if many else value


def write_published(folder: Path, config: VQGANConfig, params: Mapping[str, Any]) -> None:
    """Writes `vqgan.yaml` and `model.safetensors`, float32, under the published names: the way to PyTorch."""
    network = {name: _plain(getattr(config, name)) for name in _SAME if name not in _BESIDE_NETWORK}
    values = {name: getattr(config, name) for name in _BESIDE_NETWORK}
    values["ddconfig"] = network | {"out_ch": config.in_channels, "double_z": False, "dropout": 0.0}
    text = yaml.safe_dump({"model": {"target": "taming.models.vqgan.VQModel", "params": values}}, sort_keys=False)
    weights = safetensors.numpy.save(vqgan_weights.export_params(params, config))
    write_atomic(folder / SINGLE, lambda path: path.write_bytes(weights))
    write_atomic(folder / YAML, lambda path: path.write_text(text, encoding="utf-8"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
