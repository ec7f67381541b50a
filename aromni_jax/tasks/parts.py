"""The three kinds of content a prompt or an answer is made of: text, speech codes, image codes."""

from __future__ import annotations

import dataclasses

import numpy as np

from aromni_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of text, encoded on its own (no merge of pieces across parts)."""

    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Codes:
    """0-based codec codes, kept as a read-only int32 vector."""

    codes: np.ndarray

    def __post_init__(self) -> None:
        codes = np.array(self.codes)
        if codes.ndim != 1 or not (np.issubdtype(codes.dtype, np.integer) or codes.size == 0):
            kind = type(self).__name__
            raise UserError(f"{kind}: codes must be a vector of integers, got {codes.dtype}{codes.shape}")
        codes = codes.astype(np.int32)
        codes.flags.writeable = False
        object.__setattr__(self, "codes", codes)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and np.array_equal(self.codes, other.codes)

    def __hash__(self) -> int:
        return hash((type(self), self.codes.tobytes()))

    def __len__(self) -> int:
        return len(self.codes)


class Speech(_Codes):
    """Codes of one utterance, int32 [T] (0-based, time order)."""


class Image(_Codes):
    """Codes of one picture, int32 [N] (0-based, row-major grid)."""


Part = Text | Speech | Image
