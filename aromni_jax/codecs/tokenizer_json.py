"""Text codec of a Hugging Face `tokenizer.json`: pieces are the joint ids themselves (SPEC 1.4)."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from aromni_jax.codecs import folder as store
from aromni_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TokenizerJson:
    """str <-> ids, without special tokens on either side."""

    tokenizer: tokenizers.Tokenizer
    fingerprint: str

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TokenizerJson":
        """From a `tokenizer.json` (or Meta's `text_tokenizer.json`); UserError when it is none."""
        file = Path(path)
        try:
            data = file.read_bytes()
            tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from None
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"{file}: no tokenizer of the tokenizers library ({error})") from None
        return cls(tokenizer, store.sha256(data)[:16])

    @property
    def num_pieces(self) -> int:
        """Number of ids, special ones included."""
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Text -> ids."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, pieces: Sequence[int]) -> str:
        """Ids -> text."""
        text: str = self.tokenizer.decode(list(pieces))
        return text
