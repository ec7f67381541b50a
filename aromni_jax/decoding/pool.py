"""Requests decoded together in one cache: newcomers take rows and leave them while the others go on.

All rows write at one index, so that a step writes one slice of the cache: an index per row would make it a scatter,
which is slow on a TPU. A newcomer's prompt is read into a small cache of its own and copied to the first slots of its
row, which the index has long passed; between the prompt and the index lie slots that nobody sees, and as keys are
rotated before they are stored, it does not matter where they lie. When the index comes to the end of the cache, the
rows are moved together from slot 0 on; if that gains less than a quarter of the cache, it is doubled instead. So a
cache has less than three times the slots of the context, and is rarely copied.

The next chunk is asked for before the last one's tokens are known on the host: a device does not wait for the host.
A chunk whose rows are all done returns at once, so that this costs nothing at the end.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax.config import ModelConfig
from aromni_jax.decoding import guidance as guide
from aromni_jax.decoding.grammar import Grammar, Limits, State
from aromni_jax.decoding.loop import Carry, Inputs, decode, grow, join, pick, prefill
from aromni_jax.decoding.row import Row
from aromni_jax.decoding.sampling import Policies, row_keys
from aromni_jax.decoding.session import SMALLEST_CACHE, SMALLEST_PROMPT, Rows, begin, power_of_two
from aromni_jax.model import KVCache, Params

_TOGETHER = 4  # newcomers whose prompts are read in one call at most


class Feed(Protocol):
    """Where a pool's rows come from, first come first served."""

    def take(self, most: int, wait: bool) -> list[Row] | None:
        """Up to `most` rows; None only if `wait`, and nothing will ever come again."""

    def stopped(self) -> set[str]:
        """Ids of requests that were taken and have been cancelled since."""


@dataclasses.dataclass(frozen=True)
class Side:
    """A side row: the main row it belongs to, what of it it reads, its prompt."""

    main: int
    reads: guide.Reads
    prompt: list[int]


@dataclasses.dataclass
class _Chunk:
    """A chunk that has been asked for.

    Attributes:
      told_3sb: what `decode` returns, on its way to the host.
      rows: who sat where.
      firm: the host counts on its slots of the cache, even if it does not fill them.
    """

    told_3sb: jax.Array
    rows: list[Row | None]
    firm: bool = False


Progress = tuple[Row, np.ndarray, np.ndarray]
"""A request, its new tokens and their states; `Row.finish` says whether it is over."""


class Pool:
    """B main rows, of which requests take up to `seats`; and S side rows, as many as have been needed at once.

    Args:
      chunk: steps per call of the compiled loop.
      keep: what rows hold is kept when they are done, for `leave`; no others may come then.
      left: what an earlier pool left; the first rows go on from it.
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        grammar: Grammar,
        *,
        chunk: int,
        seats: int,
        keep: bool = False,
        left: Rows | None = None,
    ) -> None:
        self._params, self._config, self._grammar = params, config, grammar
        self._chunk, self._seats, self._keep, self._left = chunk, seats, keep, left
        self._rows: list[Row | None] = [None] * power_of_two(seats)
        self._sides: list[Side | None] = []
        self._carry: Carry | None = None
        self._inputs: Inputs | None = None  # None: to be made anew, as somebody came or left
        # Per row of the cache: its tokens; and see `Inputs`.
        self._held: list[list[int]] = []
        self._prompt_slots_r = np.zeros(0, np.int32)
        self._used = 0  # slots written, at most: those of chunks on their way may be fewer
        self._pending: collections.deque[_Chunk] = collections.deque()

    def run(self, feed: Feed) -> Generator[list[Progress]]:
        """Decode what `feed` gives until nothing more can come; yields what has become of it, after every chunk."""
        waiting: list[Row] = []
        while True:
            stopped = feed.stopped()
            progress = [self._stop(row) for row in self._rows if row and row.request.id in stopped]
            idle = not (progress or self._pending or waiting or self._working())
            free = self._seats - sum(row is not None for row in self._rows) - len(waiting)
            arrived = feed.take(free, wait=idle)
            if arrived is None:
                return
            waiting += arrived
            sent = self._advance(waiting)
            if self._pending and (len(self._pending) > 1 or not sent):
                progress += self._read()
            yield progress

    def leave(self) -> Rows | None:
        """The cache and what it holds, when `run` has ended or been closed; None if a program failed."""
        while self._pending:
            self._read()
        return Rows(self._carry.cache, self._held, self._used) if self._carry else None

    def _working(self) -> bool:
        """Is there a row that may have tokens to come beyond those of the chunks on their way?"""
        return any(row is not None and row.ahead < row.limits.max_new_tokens for row in self._rows)

    def _stop(self, row: Row) -> Progress:
        row.finish = "cancelled"
        self._release(self._rows.index(row))
        self._inputs = None
        return row, np.zeros(0, np.int32), np.zeros(0, np.int8)

    def _release(self, main: int) -> None:
        """The row's request has left."""
        self._rows[main] = None
        if self._keep:
            return
        self._held[main] = []
        for s, side in enumerate(self._sides):
            if side and side.main == main:
                self._sides[s], self._held[len(self._rows) + s] = None, []

    def _advance(self, waiting: list[Row]) -> bool:
        """Seat who waits and ask for a chunk; False if there is no use, or chunks on their way must be read before."""
        if not waiting and not self._working():
            return False
        vacant = not any(self._rows)
        slots = max((_bucket(row.prompts) for row in waiting), default=0)
        more = sum(len(row.side) for row in waiting) - self._sides.count(None)
        room = self._carry is not None and self._reach(slots) <= self._carry.cache.length and more <= 0
        if self._pending and (vacant or not room):
            return False
        if vacant and 2 * len(waiting) > len(self._rows):
            self._begin(waiting)
        else:
            if not room:
                self._make_room(slots, max(more, 0))
            self._seat(waiting)
        waiting.clear()
        self._send()
        return True

    def _reach(self, slots: int) -> int:
        """Slots that will be written after newcomers of `slots` and one more chunk."""
        return max(self._used, slots) + self._chunk

    # -- chunks --------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Ask for a chunk; there must be room."""
        self._inputs = self._inputs or self._make_inputs()
        carry, self._carry = self._carry, None  # there is nothing to leave behind if the program fails
        self._carry, told_3sb = decode(
            self._params, carry, self._inputs,
            config=self._config, grammar=self._grammar, steps=self._chunk, guided=bool(self._sides),
        )  # fmt: skip
        told_3sb.copy_to_host_async()
        self._pending.append(_Chunk(told_3sb, list(self._rows)))
        self._used += self._chunk
        for row in filter(None, self._rows):
            row.ahead += self._chunk

    def _read(self) -> list[Progress]:
        """Wait for the oldest chunk."""
        chunk = self._pending.popleft()
        tokens_sb, states_sb, after_sb = np.asarray(chunk.told_3sb)
        live_sb = states_sb != State.DONE
        if not chunk.firm:
            self._used -= self._chunk - int(live_sb.any(axis=1).sum())
        emitted = [tokens_sb[live_sb[:, b], b] for b in range(len(chunk.rows))]
        self._follow(chunk, emitted)
        progress = []
        for b, row in enumerate(chunk.rows):
            if row is None or row.finish:
                continue
            done = after_sb[-1, b] == State.DONE
            row.extend(emitted[b], states_sb[live_sb[:, b], b], done)
            progress.append((row, emitted[b], states_sb[live_sb[:, b], b]))
            if done:
                self._release(b)
        return progress

    def _follow(self, chunk: _Chunk, emitted: Sequence[np.ndarray]) -> None:
        """Keep count of what the rows hold; of those whose request has left since, nobody wants to know."""
        readers = [(b, guide.Reads.ALL, row.prompt if row else []) for b, row in enumerate(self._rows)]
        readers += [
            (side.main, side.reads, side.prompt) if side else (0, guide.Reads.NOTHING, []) for side in self._sides
        ]
        for r, (main, reads, prompt) in enumerate(readers):
            if self._rows[main] is chunk.rows[main] and self._rows[main] is not None:
                self._held[r] = guide.follow(
                    self._grammar.vocabulary, reads, len(prompt), self._held[r], emitted[main].tolist()
                )

    # -- seats ---------------------------------------------------------------------------------------

    def _take_seats(self, rows: Sequence[Row]) -> list[int]:
        """Places for `rows` among those that are free: the rows of the cache for the main rows, then the side rows."""
        mains = []
        sides = []
        for row in rows:
            mains.append(self._rows.index(None))
            self._rows[mains[-1]] = row
            for reads, prompt in row.side:
                sides.append(self._sides.index(None))
                self._sides[sides[-1]] = Side(mains[-1], reads, prompt)
        self._inputs = None
        return mains + [len(self._rows) + s for s in sides]

    def _begin(self, rows: Sequence[Row]) -> None:
        """Read the prompts of nearly as many requests as there are seats, in a cache of their own, all at once."""
        needed = sum(len(row.side) for row in rows)
        self._sides = [None] * max(len(self._sides), power_of_two(needed) if needed else 0)
        places = self._take_seats(rows)
        prompts: list[list[int]] = [[] for _ in range(len(self._rows) + len(self._sides))]
        for place, prompt in zip(places, _prompts(rows), strict=True):
            prompts[place] = prompt
        self._carry = None
        beginning = begin(self._left, prompts, self._config, self._chunk)
        self._left = None
        for row, reused in zip(rows, beginning.keep_r.tolist(), strict=False):
            row.begin(reused)
        self._carry = self._prefill(self._rows, prompts, beginning.cache, beginning.keep_r, beginning.slots)
        self._used = beginning.used + beginning.slots
        self._held = prompts
        self._prompt_slots_r = np.full(len(prompts), self._used, np.int32)

    def _seat(self, rows: Sequence[Row]) -> None:
        """Read the prompts of newcomers beside the rows that go on, and copy them to free rows."""
        for group in _groups(rows):
            places, prompts = self._take_seats(group), _prompts(group)
            for row in group:
                row.begin()
            slots = _bucket(prompts)
            cache = KVCache.create(self._config, len(prompts), slots)
            new = self._prefill(group, prompts, cache, np.zeros(len(prompts), np.int32), slots)
            # The index may be moved forward: chunks on their way then no longer give slots back.
            self._used = max(self._used, slots)
            for chunk in self._pending:
                chunk.firm = True
            carry, self._carry = self._carry, None
            self._carry = join(carry, new, jnp.asarray(places, jnp.int32), jnp.asarray(self._used, jnp.int32))
            for place, prompt in zip(places, prompts, strict=True):
                self._held[place], self._prompt_slots_r[place] = prompt, slots

    def _make_room(self, slots: int, more: int) -> None:
        """Lay the cache out for newcomers of `slots`, `more` side rows and one more chunk; no chunk is on its way."""
        if self._carry is None:
            self._sides = [None] * (power_of_two(more) if more else 0)
            self._carry = self._vacant(power_of_two(self._reach(slots)))
            return
        cache, old = self._carry.cache, len(self._held)
        longest = max(map(len, self._held))
        if not more and 4 * (self._used - longest) < cache.length:
            grown = grow(cache, length=power_of_two(self._reach(slots)))
            self._carry = dataclasses.replace(self._carry, cache=grown)
            return
        if more:
            self._sides += [None] * (power_of_two(len(self._sides) + more) - len(self._sides))
        self._inputs = None
        self._used = longest
        length = max(power_of_two(max(self._reach(slots), longest + longest // 2)), SMALLEST_CACHE)
        rows = len(self._rows) + len(self._sides)
        source_r = np.where(np.arange(rows) < old, np.arange(rows), 0)
        self._held += [[] for _ in range(rows - old)]
        keep_r = np.asarray([len(tokens) for tokens in self._held], np.int32)
        self._carry = dataclasses.replace(
            self._carry,
            cache=pick(cache, jnp.asarray(source_r), jnp.asarray(keep_r), length=length),
            hidden_rd=self._carry.hidden_rd[jnp.asarray(source_r)],
        )
        self._prompt_slots_r = np.asarray([len(prompt) for prompt in self._seated_prompts()], np.int32)

    # -- arrays --------------------------------------------------------------------------------------

    def _seated_prompts(self) -> list[list[int]]:
        """Of all rows of the cache, empty where nobody sits."""
        return [row.prompt if row else [] for row in self._rows] + [side.prompt if side else [] for side in self._sides]

    def _vacant(self, length: int) -> Carry:
        """Rows of nobody."""
        batch, rows = len(self._rows), len(self._rows) + len(self._sides)
        self._held, self._prompt_slots_r = [[] for _ in range(rows)], np.zeros(rows, np.int32)
        idle_b = jnp.ones(batch, bool)
        return Carry(
            cache=KVCache.create(self._config, rows, max(length, SMALLEST_CACHE)),
            hidden_rd=jnp.zeros((rows, self._config.dim), self._config.compute_dtype),
            grammar=self._grammar.start(self._grammar.rules([Limits(1)] * batch), idle_b),
            seen_bv=jnp.zeros((batch, self._grammar.vocabulary.size), bool),
        )

    def _prefill(
        self,
        rows: Sequence[Row | None],
        prompts: Sequence[Sequence[int]],
        cache: KVCache,
        keep_r: np.ndarray,
        slots: int,
    ) -> Carry:
        """Read what `cache` does not hold of the prompts, those of `rows` first; at most `slots` tokens of each."""
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
            jnp.asarray(keep_r), self._grammar.rules(_limits(rows)), jnp.asarray([row is None for row in rows]),
            config=self._config, grammar=self._grammar,
        )  # fmt: skip

    def _make_inputs(self) -> Inputs:
        """Of who sits where now."""
        batch = len(self._rows)
        own_r = np.arange(batch + len(self._sides), dtype=np.int32)
        source_r, reads_r = own_r.copy(), np.full(len(own_r), guide.Reads.ALL, np.int32)
        branches_b2 = np.tile(own_r[:batch, None], (1, 2))
        weights_b3 = np.tile(np.asarray([1, 0, 0], np.float32), (batch, 1))
        for s, side in enumerate(self._sides):
            source_r[batch + s], reads_r[batch + s] = (side.main, side.reads) if side else (0, guide.Reads.NOTHING)
        for b, row in enumerate(self._rows):
            if row is not None and row.side:
                own = [batch + s for s, side in enumerate(self._sides) if side and side.main == b]
                branches_b2[b] = [b if number < 0 else own[number] for number in row.branches_2]
                weights_b3[b] = row.weights_3
        return Inputs(
            rules=self._grammar.rules(_limits(self._rows)),
            policies=Policies.stack([row.request.policies if row else {} for row in self._rows]),
            keys_b=row_keys([row.request.seed if row else 0 for row in self._rows]),
            idle_b=jnp.asarray([row is None for row in self._rows]),
            branches=guide.Branches(
                source_r=jnp.asarray(source_r),
                reads_r=jnp.asarray(reads_r),
                prompt_r=jnp.asarray([len(prompt) for prompt in self._seated_prompts()], jnp.int32),
                image_row_b=jnp.asarray(branches_b2[:, 0]),
                plain_row_b=jnp.asarray(branches_b2[:, 1]),
                weights_b3=jnp.asarray(weights_b3),
            ),
            prompt_slots_r=jnp.asarray(self._prompt_slots_r),
        )


def _bucket(prompts: Sequence[Sequence[int]]) -> int:
    """Slots in which all the prompts are read."""
    return max(power_of_two(max(map(len, prompts))), SMALLEST_PROMPT)


def _prompts(rows: Sequence[Row]) -> list[list[int]]:
    """Of the main rows, then of the side rows."""
    return [row.prompt for row in rows] + [prompt for row in rows for _, prompt in row.side]


def _limits(rows: Sequence[Row | None]) -> list[Limits]:
    return [row.limits if row else Limits(1) for row in rows]


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows whose prompts are read together: 4, 2 or 1 of like length, and guided ones alone, to need few programs."""
    by_slots: dict[int, list[Row]] = {}
    for row in rows:
        if row.side:
            yield [row]
        else:
            by_slots.setdefault(_bucket([row.prompt]), []).append(row)
    for alike in by_slots.values():
        while alike:
            count = min(_TOGETHER, 1 << (len(alike).bit_length() - 1))
            yield alike[:count]
            del alike[:count]
