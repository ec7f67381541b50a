"""Newcomers of a pool: whose prompts are read together, and what of them the rows of its cache hold already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from aromni_jax.buckets import bucket
from aromni_jax.decoding.row import Row
from aromni_jax.decoding.session import SMALLEST_PROMPT, match

_TOGETHER = 4  # newcomers whose prompts are read in one call at most


@dataclasses.dataclass(frozen=True)
class Newcomer:
    """A row that is to be seated.

    Attributes:
      slots: that its prompt and those of its side rows need.
      read: slots for what is read of them, one of `read_slots`.
      source: row of the cache from which the first `keep` tokens of the prompt are taken; they are not read.
    """

    row: Row
    slots: int
    read: int
    source: int
    keep: int


def meet(rows: Sequence[Row], held: Sequence[Sequence[int]]) -> list[Newcomer]:
    """The rows in order, each with the longest beginning of its prompt among `held`, what rows of a cache hold.

    Where it is short, and where side rows have to be read besides, all is read.
    """
    source_n, keep_n = match(held, [row.prompt for row in rows])
    newcomers = []
    for row, source, keep in zip(rows, source_n.tolist(), keep_n.tolist(), strict=True):
        slots = room([row])
        read = next(part for part in read_slots(slots) if part >= len(row.prompt) - keep)
        # What is kept and what is read stand in the slots of the prompt read whole: no further shapes of caches.
        keep = min(keep, slots - read)
        if row.side or keep < SMALLEST_PROMPT:
            read, keep = slots, 0
        newcomers.append(Newcomer(row, slots, read, source, keep))
    return newcomers


def read_slots(slots: int) -> tuple[int, ...]:
    """In how many slots the rest of a prompt of `slots` may be read: few, so that there are few programs.

    An eighth, a half, the next smaller bucket, or all.
    """
    return (
        max(slots // 8, SMALLEST_PROMPT),
        max(slots // 2, SMALLEST_PROMPT),
        bucket(2 * slots // 3, SMALLEST_PROMPT),
        slots,
    )


def next_group(newcomers: Sequence[Newcomer]) -> list[Newcomer]:
    """Those that are read together next: 4, 2 or 1 of like shape, and guided ones alone, to need few programs.

    Who reuses something comes first, before others take the seat that holds it; else who came first.
    """
    first = next((newcomer for newcomer in newcomers if newcomer.keep), newcomers[0])
    if first.row.side:
        return [first]
    shape = first.slots, first.read
    alike = [n for n in newcomers if (n.slots, n.read) == shape and not n.row.side]
    return alike[: min(_TOGETHER, 1 << (len(alike).bit_length() - 1))]


def room(rows: Sequence[Row]) -> int:
    """Slots in which the prompts of all of them are read, and those of their side rows."""
    return bucket(max(row.longest_prompt for row in rows), SMALLEST_PROMPT)
