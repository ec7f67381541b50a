"""Programs compiled for TPUs that are not there: memory per chip, bytes moved, fit or no fit (DESIGN 7)."""

from aromni_jax.compile.chips import Target, target
from aromni_jax.compile.decoding import Shape, compile_decoding
from aromni_jax.compile.report import markdown
from aromni_jax.compile.training import Trial, compile_training, search
from aromni_jax.compile.training_report import training_markdown

__all__ = [
    "Shape",
    "Target",
    "Trial",
    "compile_decoding",
    "compile_training",
    "markdown",
    "search",
    "target",
    "training_markdown",
]
