"""The selector of the reference (SPEC 6.6), for comparison; the engine has one policy per state instead."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from aromni_jax.vocabulary import JointVocabulary


def reference_mode(vocabulary: JointVocabulary, previous_b: jax.Array, greedy_b: jax.Array) -> jax.Array:
    """bool [B]: does each row choose greedily now?

    Args:
      previous_b: int [B], last token of each row.
      greedy_b: bool [B], the mode so far; at the start of a text part the request's default. Ins and boa switch to
        greedy, res and eoa to sampling, whatever the default is: after the eoa of a greedy TTS the reference samples.
    """
    v = vocabulary
    on_b = (previous_b == v.ins) | (previous_b == v.boa)
    off_b = (previous_b == v.res) | (previous_b == v.eoa)
    return jnp.where(on_b, True, jnp.where(off_b, False, greedy_b))
