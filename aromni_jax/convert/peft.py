"""Adapters of a run in the layout of PyTorch's PEFT, for the base model in the `hf` layout."""

from __future__ import annotations

import fnmatch
import functools
import pathlib
from collections.abc import Callable

import numpy as np

from aromni_jax import store
from aromni_jax.convert.layouts import Piece, adapter_pieces, ahead, external_shape, to_external
from aromni_jax.convert.source import Source
from aromni_jax.errors import UserError
from aromni_jax.model import parameter_table
from aromni_jax.tensorfile import TensorWriter

_PREFIX = "base_model.model."  # what PEFT puts before the names of the model that it wraps


def write_adapters(
    folder: pathlib.Path, source: Source, dtype: np.dtype | None, progress: Callable[[int], None]
) -> None:
    """Fill an existing, empty folder with `adapter_config.json` and `adapter_model.safetensors`.

    Args:
      dtype: of the tensors; None = as stored.
      progress: called with the bytes of every tensor written.

    Raises:
      UserError: there are no adapters, or they are not all that the run has trained.
    """
    if not source.lora.rank:
        raise UserError(f"{source.path}: has no adapters (model.lora.rank is 0); convert to hf for the whole model")
    recipe = source.metadata.get("recipe", {}).get("train", {})
    others = [
        path
        for pattern in recipe.get("trainable", ())
        for path in fnmatch.filter(parameter_table(source.config), pattern.partition("@")[0])
        if parameter_table(source.config)[path].external
    ]
    if others:
        raise UserError(
            f"{source.path}: {others[0]} was trained as well as adapters; convert to hf for the whole model"
        )
    found = adapter_pieces(source.config, source.lora)
    names = {_PREFIX + piece.name("hf"): piece for piece in found}
    planned = {name: (external_shape(piece.spec, "hf"), dtype or source.dtype(piece)) for name, piece in names.items()}
    arrays = ahead(functools.partial(_external, source, piece) for piece in found)
    with TensorWriter(folder / "adapter_model.safetensors", planned, {"format": "pt"}) as writer:
        for (name, (_, kind)), array in zip(planned.items(), arrays, strict=True):
            writer.write(name, array.astype(kind, copy=False))
            progress(array.nbytes)
    modules = sorted({name.split(".")[-3] for name in names})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": recipe.get("init_from") or None,
        "r": source.lora.rank,
        "lora_alpha": source.lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    store.write_json(folder / "adapter_config.json", config)


def _external(source: Source, piece: Piece) -> np.ndarray:
    return to_external(source.read_adapter(piece), piece.spec, "hf")
