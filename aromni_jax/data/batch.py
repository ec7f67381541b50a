"""`Batch`: what every data pipeline yields and the training step takes."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax

Array: TypeAlias = Any  # numpy on the host, jax.Array on devices and inside the step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed rows; every field is [B, S] (rows of this process, tokens per row).

    Attributes:
      tokens: int32 ids; `pad` where segment_ids is 0.
      loss_weights: float32; [b, s] weighs the loss of PREDICTING tokens[b, s] from what stands before it in the same
        example. 0 on the first token of every example and on padding.
      segment_ids: int32; 1, 2, ... number the examples of a row, 0 is padding. Attention stays inside a segment.
      positions: int32; 0, 1, ... inside each example, 0 on padding.
      task_ids: int32; the example's index in `vocabulary.TASKS`, 0 on padding.
    """

    tokens: Array
    loss_weights: Array
    segment_ids: Array
    positions: Array
    task_ids: Array
