"""aromni_jax: one autoregressive decoder that reads and writes text, images and speech."""

from aromni_jax.vocabulary import JointVocabulary

__version__ = "0.1.0"
__all__ = ["JointVocabulary", "__version__"]
