"""Who sits where in a pool: the host's side of the rows of its cache."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from aromni_jax.decoding import guidance as guide
from aromni_jax.decoding.grammar import Grammar, Limits
from aromni_jax.decoding.loop import Inputs
from aromni_jax.decoding.row import Row
from aromni_jax.decoding.sampling import Policies, row_keys
from aromni_jax.vocabulary import JointVocabulary


class Stays(enum.Enum):
    """What rows of the cache still hold when who sat there has left.

    OWN: the tokens of main rows, until somebody else needs the seat. ALL: those of side rows, too; then nobody else
    may come.
    """

    NOTHING = enum.auto()
    OWN = enum.auto()
    ALL = enum.auto()


@dataclasses.dataclass(frozen=True)
class Side:
    """A side row: the main row it belongs to, what of it it reads, its prompt."""

    main: int
    reads: guide.Reads
    prompt: list[int]


_NOBODY = Side(0, guide.Reads.NOTHING, [])


class Seats:
    """B main rows, then S side rows; None where nobody sits.

    Args:
      seats: requests at once, at most.
      bucket: rows needed -> rows to decode with, which B and S are of.
      stays: what is held when a row has left.

    Attributes:
      rows: B; sides: S, 0 at first.
      held: the tokens that each of the B + S rows of the cache holds.
      prompt_slots: see `Inputs`.
    """

    def __init__(self, seats: int, bucket: Callable[[int], int], stays: Stays = Stays.NOTHING) -> None:
        batch, self._bucket, self._stays = bucket(seats), bucket, stays
        self.rows: list[Row | None] = [None] * batch
        self._free = list(range(batch))  # who has left last comes last
        self.sides: list[Side | None] = []
        self.held: list[list[int]] = [[] for _ in range(batch)]
        self.prompt_slots = [0] * batch

    @property
    def taken(self) -> list[Row]:
        """Who sits somewhere."""
        return [row for row in self.rows if row is not None]

    def add_sides(self, more: int) -> None:
        """At least `more` further side rows."""
        if more > 0:
            added = self._bucket(len(self.sides) + more) - len(self.sides)
            self.sides += [None] * added
            self.held += [[] for _ in range(added)]
            self.prompt_slots += [0] * added

    def take(self, rows: Sequence[Row], wanted: Sequence[int] = ()) -> tuple[list[int], list[int]]:
        """Seat `rows`; returns their rows of the cache, main rows and side rows. There must be places.

        `wanted`: main rows for the first of them, if they are free; else who left longest ago gives place.
        """
        mains: list[int] = []
        sides: list[int] = []
        for row, wish in itertools.zip_longest(rows, wanted):
            mains.append(wish if wish in self._free else self._free[0])
            self._free.remove(mains[-1])
            self.rows[mains[-1]] = row
            for reads, prompt in row.side:
                sides.append(self.sides.index(None))
                self.sides[sides[-1]] = Side(mains[-1], reads, prompt)
        return mains, [len(self.rows) + s for s in sides]

    def release(self, row: Row) -> None:
        """The row has left."""
        main = self.rows.index(row)
        self.rows[main] = None
        self._free.append(main)
        if self._stays is Stays.ALL:
            return
        if self._stays is Stays.NOTHING:
            self.held[main] = []
        for s, side in enumerate(self.sides):
            if side and side.main == main:
                self.sides[s], self.held[len(self.rows) + s] = None, []

    def follow(self, vocabulary: JointVocabulary, rows: Sequence[Row | None], emitted_b: Sequence[np.ndarray]) -> None:
        """What is held once `rows`, who sat here then, have emitted these tokens; who has left since is passed over."""
        new_b = [emitted.tolist() for emitted in emitted_b]
        for b, row in enumerate(self.rows):
            if row is not None and row is rows[b]:
                self.held[b] = [*self.held[b], *new_b[b]]
        for s, side in enumerate(self.sides, len(self.rows)):
            if side and self.rows[side.main] is not None and self.rows[side.main] is rows[side.main]:
                held, own = self.held[s], len(side.prompt)
                self.held[s] = guide.follow(vocabulary, side.reads, own, held, new_b[side.main])

    def prompts(self) -> list[list[int]]:
        """Of all B + S rows, empty where nobody sits."""
        return [row.prompt if row else [] for row in self.rows] + [side.prompt if side else [] for side in self.sides]

    def inputs(self, grammar: Grammar) -> Inputs:
        """Arrays for those who sit here now."""
        batch = len(self.rows)
        own_b = np.arange(batch, dtype=np.int32)
        sides = [side or _NOBODY for side in self.sides]
        branches_b2 = np.tile(own_b[:, None], (1, 2))
        weights_b3 = np.tile(np.asarray([1, 0, 0], np.float32), (batch, 1))
        for b, row in enumerate(self.rows):
            if row is not None and row.side:
                own = [batch + s for s, side in enumerate(self.sides) if side and side.main == b]
                branches_b2[b] = [b if number < 0 else own[number] for number in row.branches_2]
                weights_b3[b] = row.weights_3
        return Inputs(
            rules=grammar.rules(limits(self.rows)),
            policies=Policies.stack([row.request.policies if row else {} for row in self.rows]),
            keys_b=row_keys([row.request.seed if row else 0 for row in self.rows]),
            idle_b=jnp.asarray([row is None for row in self.rows]),
            branches=guide.Branches(
                source_r=jnp.asarray([*own_b.tolist(), *(side.main for side in sides)], jnp.int32),
                reads_r=jnp.asarray([guide.Reads.ALL] * batch + [side.reads for side in sides], jnp.int32),
                prompt_r=jnp.asarray([len(prompt) for prompt in self.prompts()], jnp.int32),
                image_row_b=jnp.asarray(branches_b2[:, 0]),
                plain_row_b=jnp.asarray(branches_b2[:, 1]),
                weights_b3=jnp.asarray(weights_b3),
            ),
            prompt_slots_r=jnp.asarray(self.prompt_slots, jnp.int32),
        )


def limits(rows: Sequence[Row | None]) -> list[Limits]:
    """Of each row; of nobody, any."""
    return [row.limits if row else Limits(1) for row in rows]
