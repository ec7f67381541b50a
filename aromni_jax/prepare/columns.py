"""Which column, field or feature of a table is the text, the picture, the sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aromni_jax.errors import UserError
from aromni_jax.prepare.items import Unusable

# In this order, where the user names none.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "text": (
        "text",
        "normalized_text",
        "caption",
        "captions",
        "transcript",
        "transcription",
        "sentence",
        "txt",
        "caption_0",
    ),
    "image": ("image", "img", "picture", "jpg", "jpeg", "png", "webp"),
    "speech": ("speech", "audio", "sound", "wav", "flac", "mp3", "ogg"),
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of columns.

    Attributes:
      named: "text", "image" or "speech" -> the column that the user names for it.
    """

    named: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, words: Sequence[str]) -> Columns:
        """From words such as "text=caption"; UserError for others."""
        named = {}
        for word in words:
            kind, _, column = word.partition("=")
            if kind not in KNOWN or not column:
                raise UserError(f"--columns {word}: write it as text=NAME, image=NAME or speech=NAME")
            named[kind] = column
        return cls(named)

    def find(self, kind: str, names: Iterable[str], where: str) -> str | None:
        """The column for "text", "image" or "speech" among `names`; None if there is none.

        Raises UserError: the one that the user names is not there.
        """
        names = list(names)
        if kind in self.named:
            if self.named[kind] not in names:
                raise UserError(f"{where}: no column {self.named[kind]}; it has {', '.join(map(str, names))}")
            return self.named[kind]
        return next((name for name in KNOWN[kind] if name in names), None)

    def texts(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """The texts of a row; () if there is none. UserError as `find`."""
        column = self.find("text", row, where)
        return () if column is None else texts_in(row[column])


def texts_in(value: Any) -> tuple[str, ...]:
    """A text, a list of them, or of {"text": ...}, as texts; `Unusable` for anything else."""
    if value is None:
        return ()
    if isinstance(value, bytes):
        try:
            return (value.decode(),)
        except UnicodeDecodeError:
            raise Unusable("bad text", "not UTF-8") from None
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        column = next((name for name in (*KNOWN["text"], "raw") if name in value), None)
        return () if column is None else texts_in(value[column])
    if isinstance(value, Iterable):
        return tuple(text for entry in value for text in texts_in(entry))
    raise Unusable("bad text", f"{type(value).__name__} where a text is expected")
