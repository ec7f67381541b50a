"""Text codec: SentencePiece pieces with byte fallback, exact for every Unicode string."""

import dataclasses
import functools
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from aromni_jax.codecs import folder as store
from aromni_jax.errors import UserError

_SPACE = "\u2581"  # how SentencePiece spells a blank inside pieces
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclasses.dataclass(frozen=True)
class TextCodec:
    """str <-> piece numbers in [0, num_pieces).

    One blank is set before every non-empty text, and taken off again, so that a word has the same piece at the
    start of a text as inside it. No normalisation: `decode(encode(text)) == text` for any text without lone
    surrogates.
    """

    processor: sentencepiece.SentencePieceProcessor
    fingerprint: str

    @classmethod
    def load(cls, path_or_name: str | os.PathLike) -> "TextCodec":
        """From a codec folder or the name of a shipped world; UserError when there is none or it is damaged."""
        folder = store.find(path_or_name, "text")
        card = store.read_card(folder, "text")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=(folder / card["weights"]).read_bytes())
        except RuntimeError as error:
            raise UserError(f"{folder / card['weights']} is no SentencePiece model; fetch it again") from error
        return cls(processor, store.fingerprint(card["config"], card["sha256"]))

    @property
    def num_pieces(self) -> int:
        """Number of pieces, byte pieces included."""
        return self.processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Text -> piece numbers; UserError on a lone surrogate, which has no UTF-8 form."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"text holds a lone surrogate at character {error.start}; remove it") from error
        if not text:
            return []
        pieces: list[int] = []
        for index, part in enumerate(f" {text}".split(_SPACE)):  # the mark itself would read as a blank
            if index:
                pieces += [self._byte_pieces[byte] for byte in _SPACE.encode()]
            pieces += self._encode_part(part)
        return pieces

    def _encode_part(self, part: str) -> list[int]:
        """SentencePiece stops at a NUL character, so that goes in as a byte."""
        pieces: list[int] = []
        for index, chunk in enumerate(part.split("\0")):
            if index:
                pieces.append(self._byte_pieces[0])
            pieces += self.processor.encode(chunk)
        return pieces

    def decode(self, pieces: Sequence[int]) -> str:
        """Piece numbers -> text; bytes that form no character become U+FFFD. UserError on a number out of range."""
        data = self.decode_bytes(pieces)
        return data.removeprefix(b" ").decode("utf-8", errors="replace")

    def decode_bytes(self, pieces: Iterable[int]) -> bytes:
        """UTF-8 bytes of pieces, the blank before the text kept: what a stream prints piece by piece."""
        table = self._piece_bytes
        data = b""
        for piece in pieces:
            if not 0 <= piece < len(table):
                raise UserError(f"text piece {piece} is outside 0..{len(table) - 1}: another text codec made it")
            data += table[piece]
        return data

    @functools.cached_property
    def _piece_bytes(self) -> list[bytes]:
        table = []
        for index in range(self.num_pieces):
            piece = self.processor.id_to_piece(index)
            byte = _BYTE.fullmatch(piece)
            if self.processor.is_byte(index) and byte:
                table.append(bytes([int(byte[1], 16)]))
            elif self.processor.is_control(index) or self.processor.is_unknown(index):
                table.append(b"")
            else:
                table.append(piece.replace(_SPACE, " ").encode())
        return table

    @functools.cached_property
    def _byte_pieces(self) -> list[int]:
        return [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]


def train_text(sentences: Iterable[str], num_pieces: int, whole: Sequence[str], seed: int) -> bytes:
    """Fits a unigram model with byte fallback -> the bytes of a SentencePiece model.

    Args:
      sentences: training text, one sentence each.
      num_pieces: size of the piece table, the 256 byte pieces and `<unk>` included.
      whole: words that come out as one piece each, whatever the statistics say.
      seed: order of the training text.

    Raises UserError when the pieces are fewer than the characters of the text need.
    """
    sentencepiece.set_random_generator_seed(seed)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(f" {sentence}" for sentence in sentences),
            model_writer=model,
            vocab_size=num_pieces,
            model_type="unigram",
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=1.0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            user_defined_symbols=[f"{_SPACE}{word}" for word in whole],
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"a text codec of {num_pieces} pieces cannot be fitted: {error}") from error
    return model.getvalue()


def corpus(path: str | os.PathLike) -> list[str]:
    """Lines of a UTF-8 text file, empty ones and those that start with # left out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
