"""What stays in the cache between two calls of the engine, so that the next turn of a dialog reads only what is new."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from aromni_jax.buckets import bucket
from aromni_jax.decoding.loop import pick
from aromni_jax.model import KVCache

SMALLEST_PROMPT = 16
SMALLEST_CACHE = 128


@dataclasses.dataclass(frozen=True)
class Rows:
    """The cache of one batch, and what is in it.

    Attributes:
      cache: R rows.
      held: R lists of the tokens that the rows hold, in order.
      used: slots written so far, padding included: the cache's own index, known without asking the device.
    """

    cache: KVCache
    held: list[list[int]]
    used: int


class Session:
    """The caches that a call of the engine leaves behind, for the next call to go on from; see `Engine.session`.

    It saves time and changes no answer, but by rounding: every request looks for the longest beginning of its prompt
    among the rows left behind, and reads the rest. So it does not matter whether a dialog was cancelled in the middle
    of a turn, began anew, lost its oldest turns or changed places in the batch. Rows that a call makes no use of are
    forgotten. The memory is free once the session is dropped.

    Attributes:
      owner: the engine whose model filled the caches.
    """

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self._rows: dict[int, Rows] = {}

    def take(self, number: int) -> Rows | None:
        """The rows of batch `number`, which then are no longer here: its cache will be donated."""
        return self._rows.pop(number, None)

    def put(self, number: int, rows: Rows) -> None:
        """Leave rows behind for batch `number` of the next call."""
        self._rows[number] = rows


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Where reading of prompts begins.

    Attributes:
      cache: R rows; whatever a row holds beyond its `keep_r` tokens is to be forgotten.
      keep_r: int32 [R], tokens of each prompt that need not be read.
      slots: bucket that holds the rest of every prompt.
      used: slots of the cache written so far.
    """

    cache: KVCache
    keep_r: np.ndarray
    slots: int
    used: int


def begin(
    rows: Rows | None, prompts: Sequence[Sequence[int]], new_cache: Callable[[int, int], KVCache], chunk: int
) -> Beginning:
    """A cache with room for `prompts` (R of them) and one chunk of steps, which holds as much of them as `rows` do.

    The cache of `rows` is taken as it is if its rows are in place and it has room; otherwise it is copied once,
    without the slots that padding and idle rows have wasted. `new_cache`: rows and slots -> an empty one.
    """
    source_r, keep_r = match(rows.held if rows else [], prompts)
    rest = max(len(prompt) - keep for prompt, keep in zip(prompts, keep_r.tolist(), strict=True))
    slots = bucket(rest, SMALLEST_PROMPT)
    kept = int(keep_r.max())
    length = bucket(kept + slots + chunk, SMALLEST_CACHE)
    if rows is None or not kept:
        return Beginning(new_cache(len(prompts), length), keep_r, slots, 0)
    in_place = len(rows.held) == len(prompts) and bool((source_r == np.arange(len(prompts)))[keep_r > 0].all())
    if in_place and rows.used + slots + chunk <= rows.cache.length:
        return Beginning(rows.cache, keep_r, slots, rows.used)
    cache = pick(rows.cache, jnp.asarray(source_r), jnp.asarray(keep_r), length=length)
    return Beginning(cache, keep_r, slots, kept)


def match(held: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """For each prompt the row of `held` that shares the longest beginning with it, its own place winning a tie.

    Returns int32 [R] rows, and int32 [R] tokens shared: less than the prompt has, as its last token must be read for
    the first new one to be chosen.
    """
    held_rt = np.full((len(held), max(map(len, held), default=0)), -1, np.int64)
    for row, tokens in zip(held_rt, held, strict=True):
        row[: len(tokens)] = tokens
    source_r, keep_r = np.zeros((2, len(prompts)), np.int32)
    for n, prompt in enumerate(prompts):
        ids = np.asarray(prompt[:-1], np.int64)[: held_rt.shape[1]]
        if not ids.size:
            continue
        shared_r = np.logical_and.accumulate(held_rt[:, : ids.size] == ids[None], axis=1).sum(axis=1)
        best = int(shared_r.argmax())
        source_r[n] = n if n < len(held) and shared_r[n] == shared_r[best] else best
        keep_r[n] = shared_r[best]
    return source_r, keep_r


def power_of_two(n: int) -> int:
    """The smallest one that is at least `n`."""
    return 1 << (n - 1).bit_length()
