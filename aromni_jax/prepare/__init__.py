"""From raw media to prepared data sets: token records, packed rows, and the manifest that training checks."""

from aromni_jax.prepare.numbers import Amounts, prepare_numbers, world_vocabulary

__all__ = ["Amounts", "prepare_numbers", "world_vocabulary"]
