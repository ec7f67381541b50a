"""Record files as random-access sources of checked arrays, and what happens when one is bad."""

from __future__ import annotations

import logging
import threading

import numpy as np

from aromni_jax.data.files import Concatenated
from aromni_jax.data.record import Record
from aromni_jax.data.rows import Row
from aromni_jax.data.weights import token_roles
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary, task_id

_LOG = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


class BadRecords:
    """Policy for bad records and their tally, shared by the threads that read.

    Args:
      policy: "stop" raises the first bad record, "skip" notes it.
      total: records there are; when all are bad, "skip" stops too.
    """

    def __init__(self, policy: str, total: int) -> None:
        self._policy = policy
        self._total = total
        self._lock = threading.Lock()
        self._reasons: dict[str, str] = {}

    def add(self, where: str, error: UserError) -> None:
        """Raise `error`, or note it under `where` (logged once)."""
        if self._policy == "stop":
            raise error
        with self._lock:
            new = where not in self._reasons
            self._reasons[where] = str(error)
        if new:
            _LOG.warning("skipped: %s", error)
        if len(self._reasons) >= self._total:
            raise UserError(f"all {self._total} records are bad, the last one: {error}")

    @property
    def reasons(self) -> dict[str, str]:
        """Place of every record that was skipped -> what is wrong with it."""
        with self._lock:
            return dict(self._reasons)


class RowSource:
    """Packed rows: tokens (uint16), segment_ids, roles, task_ids (uint8), each [S].

    A bad row that is skipped becomes padding, so that all others keep their place in the order.
    """

    def __init__(self, files: Concatenated, vocabulary: JointVocabulary, sequence_length: int, bad: BadRecords) -> None:
        self._files = files
        self._vocabulary = vocabulary
        self._bad = bad
        self.padding = vars(Row.empty(sequence_length, vocabulary))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Arrays:
        where = self._files.where(index)
        try:
            row = Row.from_bytes(self._files[index], self._vocabulary, where)
            expected = len(self.padding["tokens"])
            if len(row.tokens) != expected:
                raise UserError(f"{where}: a row of {len(row.tokens)} tokens where {expected} are expected")
        except UserError as error:
            self._bad.add(where, error)
            return self.padding
        return vars(row)


class ExampleSource:
    """Unpacked examples: tokens (uint16), roles, task_ids (uint8), each [n]; None for a bad one that is skipped."""

    def __init__(self, files: Concatenated, vocabulary: JointVocabulary, sequence_length: int, bad: BadRecords) -> None:
        self._files = files
        self._vocabulary = vocabulary
        self._longest = sequence_length
        self._bad = bad

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Arrays | None:
        where = self._files.where(index)
        try:
            record = Record.from_bytes(self._files[index], where)
            record.check(self._vocabulary, f"{where} ({record.id})")
            if len(record) > self._longest:
                raise UserError(
                    f"{where} ({record.id}): {len(record)} tokens, a row takes {self._longest}: "
                    "raise data.sequence_length"
                )
        except UserError as error:
            self._bad.add(where, error)
            return None
        return {
            "tokens": record.tokens,
            "roles": token_roles(record.tokens, record.response_length, self._vocabulary),
            "task_ids": np.full(len(record), task_id(record.task), np.uint8),
        }
