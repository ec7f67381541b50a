"""Raw media and foreign records -> prepared data sets that training reads."""

from aromni_jax.prepare.numbers import Codecs, prepare_numbers
from aromni_jax.prepare.shards import prepare_shards

__all__ = ["Codecs", "prepare_numbers", "prepare_shards"]
