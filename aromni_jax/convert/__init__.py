"""Weights in and out of files."""

from aromni_jax.convert.loading import Model, load_model, save_model

__all__ = ["Model", "load_model", "save_model"]
