"""Weights in and out of files, in the formats of this project, of Hugging Face and of Meta."""

from aromni_jax.convert.converting import FORMATS, convert, open_source
from aromni_jax.convert.loading import Model, load_model, read_params, save_model
from aromni_jax.convert.source import Source

__all__ = ["FORMATS", "Model", "Source", "convert", "load_model", "open_source", "read_params", "save_model"]
