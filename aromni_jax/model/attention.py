"""Attention behind one function; every backend masks by segment, or is refused.

A query sees a key when the key's slot is not later than its own and both carry the same segment id. That one rule is
causality, packed rows, padding (segment 0, which sees only padding) and the unused part of a key/value cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from aromni_jax.errors import UserError
from aromni_jax.model.blocked import blocked_attend
from aromni_jax.model.fused import fused_attend, fused_form
from aromni_jax.model.plain import Visibility, dense_mask, xla_attend


@dataclasses.dataclass(frozen=True)
class Backend:
    """An attention implementation.

    Attributes:
      masks_segments: whether it honours segment ids; one that does not may only run unpacked, unpadded rows.
      prepare: Visibility and number of keys -> whatever `attend` wants, computed once for all layers.
      attend: (q [b,s,h,e], k [b,k,t,e], v [b,k,t,e], prepared) -> [b,s,h,e] in the dtype of v, for t = s.
      form: the order of axes in which queries and keys are best made, "bshe" or "bhes".
    """

    masks_segments: bool
    prepare: Callable[[Visibility, int], Any]
    attend: Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]
    form: Callable[[], str] = lambda: "bshe"


def backend(name: str, *, segmented: bool) -> Backend:
    """The backend called `name`.

    Raises:
      UserError: no such backend, or segment ids are in use and the backend cannot mask them.
    """
    if name not in BACKENDS:
        raise UserError(f"model.attention is {name!r}: use one of {', '.join(sorted(BACKENDS))}")
    if segmented and not BACKENDS[name].masks_segments:
        raise UserError(f"model.attention {name!r} cannot mask segments: use 'xla', or rows that are not packed")
    return BACKENDS[name]


BACKENDS: dict[str, Backend] = {
    "xla": Backend(masks_segments=True, prepare=dense_mask, attend=xla_attend),
    "blocked": Backend(masks_segments=True, prepare=dense_mask, attend=blocked_attend),
    "fused": Backend(
        masks_segments=True, prepare=lambda visibility, keys: visibility, attend=fused_attend, form=fused_form
    ),
}
