"""The decoder (SPEC 3): parameter table, forward pass, key/value cache."""

from aromni_jax.model.cache import CACHE_DTYPES, KVCache
from aromni_jax.model.decoder import Decoder, check_params, forward, logits, split_layers
from aromni_jax.model.parameters import (
    ADAPTER,
    External,
    Params,
    ParamSpec,
    abstract_params,
    flatten,
    flops_per_token,
    init_params,
    nest,
    parameter_counts,
    parameter_table,
)
from aromni_jax.model.presets import PRESETS
from aromni_jax.model.trained import Trained, trained

__all__ = [
    "ADAPTER",
    "CACHE_DTYPES",
    "PRESETS",
    "Decoder",
    "External",
    "KVCache",
    "ParamSpec",
    "Params",
    "Trained",
    "abstract_params",
    "check_params",
    "flatten",
    "flops_per_token",
    "forward",
    "init_params",
    "logits",
    "nest",
    "parameter_counts",
    "parameter_table",
    "split_layers",
    "trained",
]
