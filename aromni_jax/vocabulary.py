"""The joint vocabulary: which id is text, image, speech or a marker. No id is written anywhere else.

Ranges are contiguous, so a modality mask is a range test on `jnp.arange(size)` (DESIGN 3, SPEC 1).
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from aromni_jax.errors import UserError

# SPEC 2.1 (ids 0..6 are the reference's own); the two last are ours.
TASKS = (
    "image_caption",
    "speech_to_text",
    "text_to_image",
    "text_to_speech",
    "image_to_text",
    "speech_to_image",
    "text_to_text",
    "image_to_speech",
    "chat",
)


def task_id(name: str) -> int:
    """Position of `name` in TASKS; raises UserError for an unknown task."""
    try:
        return TASKS.index(name)
    except ValueError:
        raise UserError(f"unknown task {name!r}: use one of {', '.join(TASKS)}") from None


class Modality(enum.IntEnum):
    """What a token stands for; the order is the one of metrics and reports."""

    TEXT = 0
    IMAGE = 1
    SPEECH = 2
    MARKER = 3


@dataclasses.dataclass(frozen=True)
class IdRange:
    """Half-open range of ids [start, stop)."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, token: object) -> bool:
        return isinstance(token, (int, np.integer)) and bool(self.start <= token < self.stop)

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """Boolean array: which of `ids` lie in the range (numpy or jax arrays)."""
        return (ids >= self.start) & (ids < self.stop)


# Of the official layout (SPEC 1.1): its size, and the id of `<reserved08707>`, which Hugging Face calls `<image>`.
OFFICIAL_SIZE = 65536
OFFICIAL_IMAGE_NAME = 8711


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointVocabulary:
    """Id ranges and markers of one joint token stream.

    Attributes:
      size: number of ids; rows of the embedding and columns of the output head.
      bos, pad, eos, unk: sequence controls. `pad` never carries loss.
      image, speech: ranges of codec codes; id = code + range.start.
      boi, eoi, boa, eoa: open and close an image or a speech span.
      eoh, eom: end of the human's and of the model's turn.
      ins, res: open the transcript echo and the response in chat (SPEC 2.4).
      text: range of ids that are text pieces.
      text_offset: id = piece + text_offset (0 where the text tokenizer's ids are the joint ids).
      image_tokens: codes in one picture; a span between boi and eoi holds exactly so many.
    """

    size: int
    bos: int
    pad: int
    eos: int
    unk: int
    image: IdRange
    eoi: int
    boi: int
    speech: IdRange
    eoa: int
    boa: int
    eoh: int
    eom: int
    ins: int
    res: int
    text: IdRange
    text_offset: int
    image_tokens: int

    def __post_init__(self) -> None:
        markers = self.markers
        if len(set(markers.values())) != len(markers):
            raise UserError(f"vocabulary: two markers share an id: {markers}")
        for name, token in markers.items():
            if not 0 <= token < self.size:
                raise UserError(f"vocabulary: marker {name} = {token} is outside 0..{self.size - 1}")
        for name, ids in (("image", self.image), ("speech", self.speech), ("text", self.text)):
            if not 0 <= ids.start <= ids.stop <= self.size:
                raise UserError(f"vocabulary: range {name} {ids.start}..{ids.stop} is outside 0..{self.size}")
            inside = [marker for marker, token in markers.items() if token in ids]
            if inside:
                raise UserError(f"vocabulary: range {name} covers the markers {', '.join(inside)}")
        spans = sorted((ids for ids in (self.image, self.speech, self.text) if len(ids)), key=lambda ids: ids.start)
        if any(first.stop > second.start for first, second in itertools.pairwise(spans)) or self.image_tokens < 1:
            raise UserError("vocabulary: image, speech and text ids overlap, or a picture has no token")

    @classmethod
    def aromni(cls) -> JointVocabulary:
        """The official layout of Chameleon, Anole and AR-Omni: 65,536 ids (SPEC 1.1)."""
        return cls(
            size=OFFICIAL_SIZE, bos=0, pad=1, eos=2, unk=3, image=IdRange(4, 8196), eoi=8196, boi=8197,
            speech=IdRange(8724, 12820), eoa=12820, boa=12821, eoh=12830, eom=12831, ins=12840, res=12841,
            text=IdRange(16384, OFFICIAL_SIZE), text_offset=0, image_tokens=1024,
        )  # fmt: skip

    @classmethod
    def compact(cls, *, text_pieces: int, image_codes: int, image_tokens: int, speech_codes: int) -> JointVocabulary:
        """A small layout in the official order: controls, image, speech, turn markers, text pieces."""
        image = IdRange(4, 4 + image_codes)
        speech = IdRange(image.stop + 2, image.stop + 2 + speech_codes)
        first_text = speech.stop + 6
        return cls(
            size=first_text + text_pieces, bos=0, pad=1, eos=2, unk=3,
            image=image, eoi=image.stop, boi=image.stop + 1,
            speech=speech, eoa=speech.stop, boa=speech.stop + 1, eoh=speech.stop + 2, eom=speech.stop + 3,
            ins=speech.stop + 4, res=speech.stop + 5,
            text=IdRange(first_text, first_text + text_pieces), text_offset=first_text, image_tokens=image_tokens,
        )  # fmt: skip

    @property
    def markers(self) -> dict[str, int]:
        """Name -> id of every control id and marker."""
        names = ("bos", "pad", "eos", "unk", "eoi", "boi", "eoa", "boa", "eoh", "eom", "ins", "res")
        return {name: getattr(self, name) for name in names}

    # -- codes and pieces <-> ids -------------------------------------------------------------------

    def image_ids(self, codes: Iterable[int]) -> np.ndarray:
        """Image codes -> ids, int32; UserError if a code is not in the codebook."""
        return _shift_in(codes, self.image, "image code")

    def image_codes(self, ids: Iterable[int]) -> np.ndarray:
        """Ids -> image codes, int32; UserError if an id is no image id."""
        return _shift_out(ids, self.image, "image")

    def speech_ids(self, codes: Iterable[int]) -> np.ndarray:
        """Speech codes -> ids, int32; UserError if a code is not in the codebook."""
        return _shift_in(codes, self.speech, "speech code")

    def speech_codes(self, ids: Iterable[int]) -> np.ndarray:
        """Ids -> speech codes, int32; UserError if an id is no speech id."""
        return _shift_out(ids, self.speech, "speech")

    def text_ids(self, pieces: Iterable[int]) -> np.ndarray:
        """Pieces of the text tokenizer -> ids, int32."""
        ids = np.asarray(list(pieces), np.int32) + self.text_offset
        _require(self.text.mask(ids), ids, "text piece gives id", self.text)
        return ids

    def text_pieces(self, ids: Iterable[int]) -> np.ndarray:
        """Ids -> pieces of the text tokenizer, int32."""
        ids = np.asarray(list(ids), np.int32)
        _require(self.text.mask(ids), ids, "text id", self.text)
        return ids - self.text_offset

    # -- looking at a stream ------------------------------------------------------------------------

    def modality(self, ids: Iterable[int] | np.ndarray) -> np.ndarray:
        """Modality of every id, int8, same shape; whatever is no text, image or speech id is MARKER."""
        ids = np.asarray(ids)
        kinds = np.full(ids.shape, Modality.MARKER, np.int8)
        for kind, span in (
            (Modality.TEXT, self.text),
            (Modality.IMAGE, self.image),
            (Modality.SPEECH, self.speech),
        ):
            kinds[span.mask(ids)] = kind
        return kinds

    def check(self, tokens: Iterable[int] | np.ndarray, where: str = "tokens") -> None:
        """Raise UserError, prefixed by `where`, unless the stream is well-formed.

        Well-formed: ids inside the vocabulary; between boi and eoi exactly `image_tokens` image codes; between boa and
        eoa speech codes only; no code outside a span; no span left open.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1:
            raise UserError(f"{where}: expected a flat list of ids, got shape {ids.shape}")
        outside = np.flatnonzero((ids < 0) | (ids >= self.size))
        if outside.size:
            at = int(outside[0])
            raise UserError(f"{where}: id {int(ids[at])} at position {at} is outside 0..{self.size - 1}")
        # Only these positions can break the grammar; text in between is skipped over.
        kinds = self.modality(ids)
        spans = (self.boi, self.eoi, self.boa, self.eoa)
        touched = np.flatnonzero((kinds == Modality.IMAGE) | (kinds == Modality.SPEECH) | np.isin(ids, spans))
        position, visited = 0, 0
        while visited < touched.size:
            position = int(touched[visited])
            token = int(ids[position])
            if token == self.boi:
                end = position + 1 + self.image_tokens
                body = kinds[position + 1 : end]
                good = int(np.argmin(np.append(body == Modality.IMAGE, False)))
                if good < self.image_tokens:
                    raise UserError(
                        f"{where}: image span at position {position} holds {good} codes, not {self.image_tokens}"
                    )
                if end >= ids.size or ids[end] != self.eoi:
                    raise UserError(f"{where}: image span at position {position} is not closed by eoi at {end}")
            elif token == self.boa:
                body = kinds[position + 1 :]
                end = position + 1 + int(np.argmin(np.append(body == Modality.SPEECH, False)))
                if end >= ids.size or ids[end] != self.eoa:
                    found = "the end" if end >= ids.size else f"id {int(ids[end])}"
                    raise UserError(f"{where}: speech span at position {position} meets {found} at {end}, not eoa")
            else:
                raise UserError(f"{where}: id {token} at position {position} stands outside an image or speech span")
            visited = int(np.searchsorted(touched, end, side="right"))

    # -- identity -----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JointVocabulary:
        """Inverse of `to_dict`; UserError names a missing or unknown field."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            odd = ", ".join(sorted(set(values) ^ names))
            raise UserError(f"vocabulary: missing or unknown fields: {odd}")
        fields: dict[str, Any] = {}
        for name, value in values.items():
            if name in ("image", "speech", "text"):
                good = isinstance(value, Mapping) and set(value) == {"start", "stop"}
                numbers = list(value.values()) if good else [None]
            else:
                numbers = [value]
            if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
                raise UserError(f"vocabulary: {name} is {value!r}; expected an id, or a range of ids")
            fields[name] = IdRange(**value) if isinstance(value, Mapping) else value
        return cls(**fields)

    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the layout; equal iff two vocabularies are interchangeable."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shift_in(codes: Iterable[int], span: IdRange, what: str) -> np.ndarray:
    codes = np.asarray(list(codes), np.int32)
    _require((codes >= 0) & (codes < len(span)), codes, what, IdRange(0, len(span)))
    return codes + span.start


def _shift_out(ids: Iterable[int], span: IdRange, what: str) -> np.ndarray:
    ids = np.asarray(list(ids), np.int32)
    _require(span.mask(ids), ids, f"{what} id", span)
    return ids - span.start


def _require(good: np.ndarray, values: np.ndarray, what: str, span: IdRange) -> None:
    if not np.all(good):
        at = int(np.argmin(good))
        raise UserError(f"{what} {int(values[at])} (position {at}) is outside {span.start}..{span.stop - 1}")
