"""Requests decoded together in one cache: newcomers take rows and leave them while the others go on.

All rows write at one index, so that a step writes one slice of the cache: an index per row would make it a scatter,
which is slow on a TPU. A newcomer's prompt is read into a small cache of its own and copied to the first slots of its
row, which the index has long passed; between the prompt and the index lie slots that nobody sees, and as keys are
rotated before they are stored, it does not matter where they lie. When the index comes to the end of the cache, the
rows are moved together from slot 0 on; if that gains less than a quarter of the cache, it grows instead. So a
cache has less than three times the slots of the context, and is rarely copied.

With `Stays.OWN`, what some row of the cache holds of a newcomer's prompt is copied to the small cache, and only the
rest is read there. That row may be one that has been left, for nobody clears it, or one that goes on.

The next chunk is asked for before the last one's tokens are known on the host: a device does not wait for the host.
A chunk whose rows are all done returns at once, so that this costs nothing at the end.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Generator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax.buckets import bucket
from aromni_jax.config import ModelConfig
from aromni_jax.decoding.grammar import Grammar, State
from aromni_jax.decoding.loop import Carry, Inputs, decode, grow, join, pick, prefill, repack, vacant
from aromni_jax.decoding.newcomers import Newcomer, meet, next_group, room
from aromni_jax.decoding.placement import Placement
from aromni_jax.decoding.row import Row
from aromni_jax.decoding.seats import Seats, Stays, limits
from aromni_jax.decoding.session import SMALLEST_CACHE, Rows, begin
from aromni_jax.model import KVCache, Params

_FIRST_STEPS = 4  # of the first chunk with a newcomer, who waits for its first token; later ones double


class Feed(Protocol):
    """Where a pool's rows come from, first come first served."""

    def take(self, most: int, wait: bool) -> list[Row] | None:
        """Up to `most` rows; None only if `wait`, and nothing will ever come again."""

    def stopped(self) -> set[str]:
        """Ids of requests that were taken and have been cancelled since."""


@dataclasses.dataclass
class _Chunk:
    """A chunk that has been asked for.

    Attributes:
      told_3sb: what `decode` returns, on its way to the host.
      rows: who sat where.
      steps: how many it may take.
      firm: the host counts on its slots of the cache, even if it does not fill them.
    """

    told_3sb: jax.Array
    rows: list[Row | None]
    steps: int
    firm: bool = False


Progress = tuple[Row, np.ndarray, np.ndarray]
"""A request, its new tokens and their states; `Row.finish` says whether it is over."""


class Pool:
    """B main rows, of which requests take up to `seats`; and S side rows, as many as have been needed at once.

    Args:
      chunk: most steps per call of the compiled loop.
      stays: what is left of a row when it is done.
      left: what an earlier pool left; the first rows go on from it.
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        grammar: Grammar,
        place: Placement,
        *,
        chunk: int,
        seats: int,
        stays: Stays = Stays.NOTHING,
        left: Rows | None = None,
    ) -> None:
        self._params, self._config, self._grammar, self._place = params, config, grammar, place
        self._chunk, self._most, self._stays, self._left = chunk, seats, stays, left
        self._seats = Seats(seats, place.bucket, stays)
        self._carry: Carry | None = None
        self._inputs: Inputs | None = None  # None: to be made anew, as somebody came or left
        self._pace = chunk  # steps of the next chunk
        self._used = 0  # slots written, at most: those of chunks on their way may be fewer
        self._pending: collections.deque[_Chunk] = collections.deque()

    def run(self, feed: Feed) -> Generator[list[Progress]]:
        """Decode what `feed` gives until nothing more can come; yields what has become of it, after every chunk."""
        try:
            yield from self._run(feed)
        except GeneratorExit:
            raise
        except BaseException:  # Ctrl-C, too: it may have come between a chunk and what the host knows of it
            self._carry = None
            self._pending.clear()
            raise

    def leave(self) -> Rows | None:
        """The cache and what it holds, when `run` has ended or been closed; None if it was interrupted or failed."""
        while self._pending:
            self._read()
        return Rows(self._carry.cache, self._seats.held, self._used) if self._carry else None

    def _run(self, feed: Feed) -> Generator[list[Progress]]:
        waiting: list[Row] = []
        while True:
            stopped = feed.stopped()
            progress = [self._stop(row) for row in self._seats.taken if row.request.id in stopped]
            idle = not (progress or self._pending or waiting or self._working())
            free = self._most - len(self._seats.taken) - len(waiting)
            arrived = feed.take(free, wait=idle)
            if arrived is None:
                return
            waiting += arrived
            with self._place.active():
                sent = self._advance(waiting)
            if self._pending and (len(self._pending) > 1 or not sent):
                progress += self._read()
            yield progress

    def _working(self) -> bool:
        """Is there a row that may have tokens to come beyond those of the chunks on their way?"""
        return any(row.ahead < row.limits.max_new_tokens for row in self._seats.taken)

    def _stop(self, row: Row) -> Progress:
        row.finish = "cancelled"
        self._seats.release(row)
        self._inputs = None
        return row, np.zeros(0, np.int32), np.zeros(0, np.int8)

    def _advance(self, waiting: list[Row]) -> bool:
        """Seat who waits and ask for a chunk; False if there is no use, or chunks on their way must be read before."""
        if not waiting and not self._working():
            return False
        vacant = not self._seats.taken
        slots = room(waiting) if waiting else 0
        more = sum(len(row.side) for row in waiting) - self._seats.sides.count(None)
        fits = self._carry is not None and self._reach(slots) <= self._carry.cache.length and more <= 0
        if self._pending and (vacant or not fits):
            return False
        if vacant and (self._stays is Stays.ALL or self._begin_anew(waiting)):
            self._begin(waiting)
        else:
            if not fits:
                self._make_room(slots, max(more, 0))
            self._seat(waiting)
        if waiting:
            self._pace = min(_FIRST_STEPS, self._chunk)
        waiting.clear()
        self._send()
        return True

    def _reach(self, slots: int) -> int:
        """Slots that will be written after newcomers of `slots` and one more chunk."""
        return max(self._used, slots) + self._chunk

    # -- chunks --------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Ask for a chunk; there must be room."""
        self._inputs = self._inputs or self._seats.inputs(self._grammar)
        self._carry, told_3sb = decode(
            self._params, self._carry, self._inputs, jnp.asarray(self._pace, jnp.int32),
            config=self._config, grammar=self._grammar, steps=self._chunk, guided=bool(self._seats.sides),
        )  # fmt: skip
        told_3sb.copy_to_host_async()
        self._pending.append(_Chunk(told_3sb, list(self._seats.rows), self._pace))
        self._used += self._pace
        for row in self._seats.taken:
            row.ahead += self._pace
        self._pace = min(2 * self._pace, self._chunk)

    def _read(self) -> list[Progress]:
        """Wait for the oldest chunk."""
        chunk = self._pending.popleft()
        tokens_sb, states_sb, after_sb = np.asarray(chunk.told_3sb)[:, : chunk.steps]
        live_sb = states_sb != State.DONE
        if not chunk.firm:
            self._used -= chunk.steps - int(live_sb.any(axis=1).sum())
        emitted = [tokens_sb[live_sb[:, b], b] for b in range(len(chunk.rows))]
        self._seats.follow(self._grammar.vocabulary, chunk.rows, emitted)
        progress = []
        for b, row in enumerate(chunk.rows):
            if row is None or row.finish:
                continue
            done = after_sb[-1, b] == State.DONE
            row.extend(emitted[b], states_sb[live_sb[:, b], b], done)
            progress.append((row, emitted[b], states_sb[live_sb[:, b], b]))
            if done:
                self._seats.release(row)
        return progress

    # -- seats ---------------------------------------------------------------------------------------

    def _meet(self, rows: Sequence[Row]) -> list[Newcomer]:
        held = self._seats.held[: len(self._seats.rows)] if self._stays is Stays.OWN else []
        return meet(rows, held)

    def _begin_anew(self, rows: Sequence[Row]) -> bool:
        """Whether a new cache is better for newcomers of a vacant pool than to copy them to the one there is."""
        return 2 * len(rows) > len(self._seats.rows) and not any(newcomer.keep for newcomer in self._meet(rows))

    def _begin(self, rows: Sequence[Row]) -> None:
        """Read the prompts of requests that begin together, in a cache of their own or the one left for them."""
        seats, self._inputs, self._carry = self._seats, None, None
        seats.add_sides(sum(len(row.side) for row in rows) - seats.sides.count(None))
        mains, _ = seats.take(rows)
        prompts = seats.prompts()
        beginning = begin(self._left, prompts, self._place.new_cache, self._chunk)
        self._left = None
        for row, reused in zip(rows, beginning.keep_r[mains].tolist(), strict=True):
            row.begin(reused)
        fresh = not beginning.used
        self._carry = self._prefill(seats.rows, prompts, beginning.cache, beginning.keep_r, beginning.slots, fresh)
        self._used = beginning.used + beginning.slots
        seats.held, seats.prompt_slots = prompts, [self._used] * len(prompts)

    def _seat(self, rows: Sequence[Row]) -> None:
        """Read the prompts of newcomers beside the rows that go on, and copy them to free rows."""
        rows = list(rows)
        while rows:
            newcomers = next_group(self._meet(rows))
            group, slots, read = [n.row for n in newcomers], newcomers[0].slots, newcomers[0].read
            rows = [row for row in rows if row not in group]
            mains, sides = self._seats.take(group, [n.source for n in newcomers if n.keep])
            for newcomer in newcomers:
                newcomer.row.begin(newcomer.keep)
            # Filled up to rows that a mesh can split.
            side = [prompt for row in group for _, prompt in row.side]
            seats = [*group, *[None] * (self._place.bucket(len(group)) - len(group))]
            prompts = [row.prompt if row else [] for row in seats]
            prompts += side + [[]] * (self._place.bucket(len(side)) - len(side) if side else 0)
            source_r, keep_r = np.zeros((2, len(prompts)), np.int32)
            source_r[: len(group)] = [n.source for n in newcomers]
            keep_r[: len(group)] = [n.keep for n in newcomers]
            assert self._carry is not None, "there is a cache to seat them in"
            if fresh := read == slots:
                cache = self._place.new_cache(len(prompts), slots)
            else:
                cache = pick(self._carry.cache, jnp.asarray(source_r), jnp.asarray(keep_r), length=slots)
            new = self._prefill(seats, prompts, cache, keep_r, read, fresh)
            # The index may be moved forward: chunks on their way then no longer give slots back.
            self._used = max(self._used, slots)
            for chunk in self._pending:
                chunk.firm = True
            places = (jnp.asarray(places, jnp.int32) for places in (mains, sides))
            self._carry = join(self._carry, new, *places, jnp.asarray(self._used, jnp.int32))
            self._inputs = None
            for at, prompt in zip([*mains, *sides], [*(row.prompt for row in group), *side], strict=True):
                self._seats.held[at], self._seats.prompt_slots[at] = prompt, slots

    def _make_room(self, slots: int, more: int) -> None:
        """Lay the cache out for newcomers of `slots`, `more` side rows and one more chunk; no chunk is on its way."""
        seats, old = self._seats, len(self._seats.held)
        seats.add_sides(more)
        if self._carry is None:
            cache = self._place.new_cache(len(seats.held), bucket(self._reach(slots), SMALLEST_CACHE))
            self._carry = vacant(cache, batch=len(seats.rows), config=self._config, grammar=self._grammar)
            return
        cache, longest = self._carry.cache, max(map(len, seats.held))
        if len(seats.held) == old and 4 * (self._used - longest) < cache.length:
            grown = grow(cache, length=bucket(self._reach(slots), SMALLEST_CACHE))
            self._carry = dataclasses.replace(self._carry, cache=grown)
            return
        self._used = longest
        length = bucket(max(self._reach(slots), longest + longest // 2), SMALLEST_CACHE)
        source_r = jnp.asarray([r if r < old else 0 for r in range(len(seats.held))], jnp.int32)
        keep_r = jnp.asarray([len(tokens) for tokens in seats.held], jnp.int32)
        self._carry = repack(self._carry, source_r, keep_r, length=length)
        seats.prompt_slots, self._inputs = [len(prompt) for prompt in seats.prompts()], None

    def _prefill(
        self,
        rows: Sequence[Row | None],
        prompts: Sequence[Sequence[int]],
        cache: KVCache,
        keep_r: np.ndarray,
        slots: int,
        fresh: bool,
    ) -> Carry:
        """Read what `cache` does not hold of the prompts, those of `rows` first; at most `slots` tokens of each.

        `fresh`: it holds nothing of any.
        """
        vocabulary = self._grammar.vocabulary
        tokens_rp = np.full((len(prompts), slots), vocabulary.pad, np.int32)
        seen_bv = np.zeros((len(rows), vocabulary.size), bool)
        lengths_r = np.asarray([len(prompt) for prompt in prompts], np.int32) - keep_r
        for r, prompt in enumerate(prompts):
            tokens_rp[r, slots - lengths_r[r] :] = prompt[keep_r[r] :]
            if r < len(rows):
                seen_bv[r, prompt] = True
        return prefill(
            self._params, cache, jnp.asarray(seen_bv), jnp.asarray(tokens_rp), jnp.asarray(lengths_r),
            jnp.asarray(keep_r), self._grammar.rules(limits(rows)), jnp.asarray([row is None for row in rows]),
            config=self._config, grammar=self._grammar, fresh=fresh,
        )  # fmt: skip
