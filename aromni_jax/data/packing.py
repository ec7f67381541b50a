"""Best-fit packing: which examples share a row. An example is never split (a picture or an answer would be cut)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from aromni_jax.errors import UserError

MAX_SEGMENTS = 255  # a row stores its segment ids in one byte each
_PART = 2**20  # examples packed at once; each takes some hundred bytes meanwhile


def best_fit(lengths: np.ndarray, capacity: int, seed: int = 0) -> list[np.ndarray]:
    """Best-fit decreasing bin packing; about a second for a million examples.

    Each example, longest first, goes to the open row it fills best. Examples of equal length are taken in random order,
    so that rows do not follow the order of the file.

    Args:
      lengths: int [n], tokens of each example, 1..capacity.
      capacity: tokens of a row.

    Returns:
      For every row the indices of its examples, int64; each index occurs once over all rows.

    Raises:
      UserError: an example is longer than a row (or empty).
    """
    lengths = np.asarray(lengths, np.int64)
    if lengths.size == 0:
        return []
    wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if wrong.size:
        at = int(wrong[0])
        raise UserError(f"example {at} has {int(lengths[at])} tokens; a row takes 1..{capacity}: raise sequence_length")
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    shortest = int(lengths.min())

    rows_by_free: list[list[int]] = [[] for _ in range(capacity + 1)]
    free_mask = 0  # bit f is set iff rows_by_free[f] is not empty
    members: list[list[int]] = []
    for example, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = free_mask >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_free[free].pop()
            if not rows_by_free[free]:
                free_mask ^= 1 << free
            members[row].append(example)
        else:
            free, row = capacity, len(members)
            members.append([example])
        left = free - length
        if left >= shortest and len(members[row]) < MAX_SEGMENTS:
            rows_by_free[left].append(row)
            free_mask |= 1 << left
    return [np.asarray(row, np.int64) for row in members]


def best_fit_parts(lengths: np.ndarray, capacity: int, seed: int = 0, part: int = _PART) -> Iterator[np.ndarray]:
    """Rows as `best_fit` has them, of `part` examples at a time at most: its memory does not grow with their number.

    Each part is every so many-th example, so all have the same mix of lengths and fill rows as well as the whole would.
    """
    parts = -(-len(lengths) // part)
    for first in range(parts):
        for row in best_fit(lengths[first::parts], capacity, seed):
            yield first + parts * row


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Share of a batch's tokens that are real, for the same examples laid out in three ways.

    Attributes:
      packed: packed rows of `capacity` tokens.
      padded_to_longest: one example per row, rows padded to the longest of each random batch (the reference, SPEC 2.1).
      padded_to_max: one example per row of `capacity` tokens.
    """

    packed: float
    padded_to_longest: float
    padded_to_max: float


def efficiency(lengths: np.ndarray, rows: int, capacity: int, batch_size: int = 16, seed: int = 0) -> Efficiency:
    """Packing figures of `lengths` packed into `rows`; `batch_size` is that of the padded layouts."""
    lengths = np.asarray(lengths, np.int64)
    if lengths.size == 0:
        return Efficiency(0.0, 0.0, 0.0)
    total = int(lengths.sum())
    shuffled = np.random.default_rng(seed).permutation(lengths)
    starts = np.arange(0, len(lengths), batch_size)
    sizes = np.diff(np.append(starts, len(lengths)))
    padded = int((np.maximum.reduceat(shuffled, starts) * sizes).sum())
    return Efficiency(total / (rows * capacity), total / padded, total / (len(lengths) * capacity))
