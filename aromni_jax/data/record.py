"""`Record`: one training example as tokens, and its compact binary form."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

from aromni_jax.errors import UserError
from aromni_jax.vocabulary import TASKS, JointVocabulary, task_id

_MAGIC = b"aomR"
_VERSION = 1
# magic, version, task id, bytes of the id, response length, tokens; then the id (UTF-8) and the tokens (little endian).
_HEADER = struct.Struct("<4sBBHII")
_TOKENS = np.dtype("<u2")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One example of one task.

    Attributes:
      tokens: uint16 [n], the whole stream: bos, prompt, answer, eos.
      task: a name of `vocabulary.TASKS`.
      response_length: tokens of the answer without its eos (SPEC 2.1); 0 = no answer marked, all of it is plain text.
      id: where the example comes from, for error messages.
    """

    tokens: np.ndarray
    task: str
    response_length: int = 0
    id: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.to_bytes() == other.to_bytes()

    @classmethod
    def checked(
        cls, tokens, task: str, response_length: int, id: str, vocabulary: JointVocabulary, where: str
    ) -> Record:
        """A record made of untrusted parts; UserError prefixed by `where` if any of them is wrong."""
        try:
            ids = np.asarray(tokens)
        except ValueError:  # lists of several lengths
            ids = np.zeros((0, 0))
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"{where}: tokens must be a flat list of integers")
        outside = np.flatnonzero((ids < 0) | (ids >= vocabulary.size))
        if outside.size:
            at = int(outside[0])
            raise UserError(f"{where}: id {int(ids[at])} at position {at} is outside 0..{vocabulary.size - 1}")
        record = cls(ids.astype(np.uint16), task, response_length, id)
        record.check(vocabulary, where)
        return record

    def check(self, vocabulary: JointVocabulary, where: str) -> None:
        """Raise UserError, prefixed by `where` (file and record), unless the record is sound and well-formed."""
        if self.task not in TASKS:
            raise UserError(f"{where}: unknown task {self.task!r}: use one of {', '.join(TASKS)}")
        if len(self) == 0:
            raise UserError(f"{where}: the record has no tokens")
        if not 0 <= self.response_length <= len(self):
            raise UserError(f"{where}: response_length {self.response_length} is not in 0..{len(self)}")
        vocabulary.check(self.tokens, where)

    def to_bytes(self) -> bytes:
        """Binary form, version 1; `from_bytes` is the inverse."""
        name = self.id.encode()
        tokens = np.ascontiguousarray(self.tokens, _TOKENS)
        header = _HEADER.pack(_MAGIC, _VERSION, task_id(self.task), len(name), self.response_length, len(tokens))
        return header + name + tokens.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "record") -> Record:
        """Inverse of `to_bytes`; UserError prefixed by `where` for anything else than a whole record."""
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise UserError(f"{where}: not a token record; make the file again with `aromni prepare`")
        _, version, task, name_bytes, response_length, length = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise UserError(f"{where}: record version {version}, this program reads version {_VERSION}")
        start = _HEADER.size + name_bytes
        if len(data) != start + length * _TOKENS.itemsize:
            raise UserError(f"{where}: {len(data)} bytes, the header says {start + length * _TOKENS.itemsize}")
        if task >= len(TASKS):
            raise UserError(f"{where}: unknown task number {task}")
        name = data[_HEADER.size : start].decode(errors="replace")
        return cls(np.frombuffer(data, _TOKENS, length, start), TASKS[task], response_length, name)
