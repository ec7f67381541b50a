"""Programs compiled for TPUs that are not there: memory per chip, bytes moved, fit or no fit (DESIGN 7)."""

from aromni_jax.compile.chips import Target, target
from aromni_jax.compile.decoding import Shape, compile_decoding
from aromni_jax.compile.report import markdown

__all__ = ["Shape", "Target", "compile_decoding", "markdown", "target"]
