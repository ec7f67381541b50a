"""`Row`: several examples side by side in a fixed number of tokens, and its binary form."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from aromni_jax.data.packing import MAX_SEGMENTS, best_fit
from aromni_jax.data.record import Record
from aromni_jax.data.weights import ROLES, token_roles
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import TASKS, JointVocabulary, task_id

_MAGIC = b"aomP"
_VERSION = 1
_HEADER = struct.Struct("<4sBI")  # magic, version, tokens S; then tokens (u2) and three times S bytes
_TOKENS = np.dtype("<u2")


@dataclasses.dataclass(frozen=True)
class Row:
    """One packed row of S tokens.

    Attributes:
      tokens: uint16 [S].
      segment_ids: uint8 [S]; 1, 2, ... per example, 0 = padding (at the end only).
      roles: uint8 [S], see `weights`.
      task_ids: uint8 [S]; 0 on padding.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    roles: np.ndarray
    task_ids: np.ndarray

    @classmethod
    def of(cls, records: Sequence[Record], capacity: int, vocabulary: JointVocabulary) -> Row:
        """The records one after the other, then padding."""
        assert len(records) <= MAX_SEGMENTS
        row = cls.empty(capacity, vocabulary)
        start = 0
        for segment, record in enumerate(records, 1):
            span = slice(start, start + len(record))
            row.tokens[span] = record.tokens
            row.segment_ids[span] = segment
            row.roles[span] = token_roles(record.tokens, record.response_length, vocabulary)
            row.task_ids[span] = task_id(record.task)
            start += len(record)
        return row

    @classmethod
    def empty(cls, capacity: int, vocabulary: JointVocabulary) -> Row:
        """Nothing but padding."""
        tokens = np.full(capacity, vocabulary.pad, np.uint16)
        return cls(tokens, *(np.zeros(capacity, np.uint8) for _ in range(3)))

    def to_bytes(self) -> bytes:
        """Binary form, version 1; `from_bytes` is the inverse."""
        fields = (self.segment_ids, self.roles, self.task_ids)
        header = _HEADER.pack(_MAGIC, _VERSION, len(self.tokens))
        return b"".join([header, self.tokens.astype(_TOKENS).tobytes(), *(field.tobytes() for field in fields)])

    @classmethod
    def from_bytes(cls, data: bytes, vocabulary: JointVocabulary, where: str = "row") -> Row:
        """Inverse of `to_bytes`.

        Raises:
          UserError: prefixed by `where`: not a row, cut off, or holds an id, task or role that does not exist.
        """
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise UserError(f"{where}: not a packed row; make the file again with `aromni prepare`")
        _, version, length = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise UserError(f"{where}: row version {version}, this program reads version {_VERSION}")
        if len(data) != _HEADER.size + 5 * length:
            raise UserError(f"{where}: {len(data)} bytes, the header says {_HEADER.size + 5 * length}")
        tokens = np.frombuffer(data, _TOKENS, length, _HEADER.size)
        start = _HEADER.size + 2 * length
        fields = (np.frombuffer(data, np.uint8, length, start + i * length) for i in range(3))
        row = cls(tokens, *fields)
        for values, limit, what in (
            (row.tokens, vocabulary.size, "id"),
            (row.roles, ROLES, "role"),
            (row.task_ids, len(TASKS), "task number"),
        ):
            if length and int(values.max()) >= limit:
                at = int(values.argmax())
                raise UserError(f"{where}: {what} {int(values[at])} at position {at} is outside 0..{limit - 1}")
        return row


def pack(records: Sequence[Record], capacity: int, vocabulary: JointVocabulary, seed: int = 0) -> Iterator[Row]:
    """Best-fit rows of `records`; UserError if one is longer than a row."""
    lengths = np.fromiter((len(record) for record in records), np.int64, len(records))
    for members in best_fit(lengths, capacity, seed):
        yield Row.of([records[i] for i in members], capacity, vocabulary)
