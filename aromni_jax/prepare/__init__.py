"""Raw media and foreign records -> prepared data sets that training reads."""

from aromni_jax.prepare.corpus import prepare_corpus
from aromni_jax.prepare.media import Codecs
from aromni_jax.prepare.world import prepare_world

__all__ = ["Codecs", "prepare_corpus", "prepare_world"]
