"""The same training examples in two layouts: packed rows, and one example per row, padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aromni_jax.data import Batch
from aromni_jax.errors import UserError

Example = dict[str, np.ndarray]  # fields of `Batch`, each [n]
_FIELDS = ("tokens", "loss_weights", "task_ids")


def examples_of(batches: Sequence[Batch]) -> list[Example]:
    """Every example of packed batches, in the order in which it stands there."""
    examples = []
    for batch in batches:
        for row, segments_s in enumerate(batch.segment_ids):
            for segment in range(1, segments_s.max(initial=0) + 1):
                here_s = segments_s == segment
                examples.append({name: getattr(batch, name)[row, here_s] for name in _FIELDS})
    return examples


def padded(examples: Sequence[Example], pad: int) -> Batch:
    """One example per row, on the left; rows as long as the longest of them."""
    lengths_b = np.asarray([len(example["tokens"]) for example in examples])
    shape = (len(examples), int(lengths_b.max()))
    real_bs = np.arange(shape[1])[None] < lengths_b[:, None]
    batch = Batch(
        tokens=np.full(shape, pad, np.int32),
        loss_weights=np.zeros(shape, np.float32),
        segment_ids=real_bs.astype(np.int32),
        positions=np.where(real_bs, np.arange(shape[1])[None], 0).astype(np.int32),
        task_ids=np.zeros(shape, np.int32),
    )
    for name in _FIELDS:
        getattr(batch, name)[real_bs] = np.concatenate([example[name] for example in examples])
    return batch


def padded_batches(packed: Sequence[Batch], rows: int, count: int, pad: int, seed: int = 0) -> list[Batch]:
    """`count` padded batches that stand for all that the examples of `packed` make.

    The examples are shuffled and cut into lots of `rows`; the lots are sorted by their longest example and cut into
    `count` equal parts, of each of which the middle lot is taken. A lot's length is a matter of luck (has it got a long
    dialog in it?); a handful of them drawn at random would not tell how much padding there is on average.

    Raises:
      UserError: there are not as many lots.
    """
    examples = examples_of(packed)
    order = np.random.default_rng(seed).permutation(len(examples))
    lots = [[examples[i] for i in order[start : start + rows]] for start in range(0, len(order) - rows + 1, rows)]
    if len(lots) < count:
        raise UserError(f"{len(examples)} examples make {len(lots)} padded batches of {rows}, {count} are wanted")
    lots.sort(key=lambda lot: max(len(example["tokens"]) for example in lot))
    return [padded(lots[(2 * part + 1) * len(lots) // (2 * count)], pad) for part in range(count)]


def slots(batches: Sequence[Batch]) -> int:
    """Tokens, padding included."""
    return sum(batch.tokens.size for batch in batches)


def useful(batches: Sequence[Batch]) -> int:
    """Tokens that are not padding."""
    return sum(int((batch.segment_ids > 0).sum()) for batch in batches)


def shape_name(batches: Sequence[Batch]) -> str:
    """ "8 x 256", or "16 x 57-231" where the lengths differ."""
    rows = len(batches[0].tokens)
    lengths = sorted({batch.tokens.shape[1] for batch in batches})
    return f"{rows} x {lengths[0]}" if len(lengths) == 1 else f"{rows} x {lengths[0]}-{lengths[-1]}"
