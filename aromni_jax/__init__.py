"""aromni_jax: one autoregressive decoder that reads and writes text, images and speech."""

import importlib
from typing import TYPE_CHECKING, Any

from aromni_jax.vocabulary import JointVocabulary

if TYPE_CHECKING:
    from aromni_jax import losses
    from aromni_jax.convert import load_model

__version__ = "0.1.0"
__all__ = ["JointVocabulary", "__version__", "load_model", "losses"]


def __getattr__(name: str) -> Any:
    # What needs JAX is imported when it is used: `aromni --help` and the vocabulary answer at once.
    if name == "load_model":
        return importlib.import_module("aromni_jax.convert").load_model
    if name == "losses":
        return importlib.import_module("aromni_jax.losses")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
