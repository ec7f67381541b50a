"""What a source yields: media with their text, token streams that are made already, and what cannot be used."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aromni_jax.errors import UserError

Part = dict[str, Any]  # of a source: JSON, some items that are read together
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Blob:
    """A media file inside of another file.

    Attributes:
      name: what errors call it.
    """

    name: str
    data: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Wave:
    """Sound that is decoded already: float32 [n] in [-1, 1], mono, at `rate` hertz."""

    wave: np.ndarray
    rate: int


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """A medium that is encoded already: int32 [n] from 0."""

    codes: np.ndarray


Picture = Path | Blob | Codes
Sound = Path | Blob | Wave | Codes


@dataclasses.dataclass(frozen=True)
class Item:
    """Media and texts that belong together.

    Attributes:
      file, record: where it comes from; the record is its name there, and the same one each time.
      split: "train", "test", or "" where the source leaves that to the pipeline.
      texts: captions or transcripts, each of them of examples of its own; plain text where there is no medium.
    """

    file: str
    record: str
    split: str = ""
    texts: tuple[str, ...] = ()
    image: Picture | None = None
    speech: Sound | None = None


@dataclasses.dataclass(frozen=True)
class Turn:
    """Of a dialog: what the user shows and says, and the answer in the shape of SPEC 2.4."""

    speech: tuple[Codes, ...]
    images: tuple[Codes, ...]
    said: str
    transcript: str
    reply: str
    answer_speech: tuple[Codes, ...]
    answer_images: tuple[Codes, ...]


@dataclasses.dataclass(frozen=True)
class Dialog:
    """Turns that belong together; `file`, `record` and `split` as of an `Item`."""

    file: str
    record: str
    split: str
    turns: tuple[Turn, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """An example that is tokens already.

    Attributes:
      file, record, split: as of an `Item`.
      tokens: ids of the joint vocabulary, or what claims to be.
      response_length: as of a `data.Record`; None = told by `labels`.
      labels: bool [n], the tokens that carry loss; None = told by `response_length`.
      id: of the record.
    """

    file: str
    record: str
    split: str
    tokens: Any
    task: str
    response_length: int | None
    labels: np.ndarray | None = None
    id: str = ""


class Unusable(UserError):
    """Why a record is left out.

    Attributes:
      reason: a few words that are the same for all records with this fault.
      detail: what is wrong with this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Reject:
    """A record, or one example of it, that is left out."""

    file: str
    record: str
    reason: str
    detail: str = ""

    @classmethod
    def of(cls, file: str, record: str, error: UserError, reason: str = "bad record") -> Reject:
        """For an error; `reason` where it does not tell its own."""
        if isinstance(error, Unusable):
            return cls(file, record, error.reason, error.detail)
        return cls(file, record, reason, " ".join(str(error).split()))

    @property
    def line(self) -> str:
        """As a message."""
        return f"{self.file} ({self.record}): {self.reason}" + (f" ({self.detail})" if self.detail else "")


Given = Item | Dialog | Stream | Reject


class Source(Protocol):
    """Data of one format at one place. Sent to the pipeline's workers as it is.

    Attributes:
      needs: the codecs that its items take: "text", "image", "speech"; none for token streams.
      sizes: of codes that it holds already, made by codecs of its own: the arguments of `JointVocabulary.compact`.
      has_split: whether its items tell their own split.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def sizes(self) -> Mapping[str, int] | None: ...

    @property
    def has_split(self) -> bool: ...

    def state(self) -> Mapping[str, Any]:
        """JSON that is another one when the data is; quickly."""

    def parts(self, size: int) -> Iterator[tuple[Part, int]]:
        """All of it in order, in parts of about `size` items; with the number of items, 0 where that is not known."""

    def items(self, part: Part) -> Iterator[Given]:
        """What a part holds, read one by one."""


def split_named(name: str) -> str:
    """The split that a folder or file of that name holds; "" where the name says nothing."""
    words = name.lower().replace("-", "_").replace(".", "_").split("_")
    if {"test", "testing", "val", "valid", "validation", "dev", "eval"} & set(words):
        return "test"
    return "train" if {"train", "training"} & set(words) else ""


def files_state(files: Sequence[str]) -> Mapping[str, Any]:
    """Of a source that is files: which, and how large and how old they are."""
    facts = [f"{file} {(stat := os.stat(file)).st_size} {stat.st_mtime_ns}" for file in files]
    digest = hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()
    return {"first": str(Path(files[0]).absolute()), "files": len(files), "digest": digest[:16]}
