"""Files of codes: JSON lines, one for each picture or utterance.

    {"source": "two/dog.flac", "kind": "speech", "codec": "a3f0c2d4e5b60718", "samples": 32000, "codes": [17, 4, ...]}
    {"source": "cat.png", "kind": "image", "codec": "0718a3f0c2d4e5b6", "codes": [5, 0, 9, ...]}

`aromni codec encode` writes one such file, of one line, for each input: a result is there whole or not at all, and a
command that was stopped can go on. Lines say all about themselves, so files may be joined (`cat`), cut and filtered
(`jq`) into the lists of ids that data sets of this field are made of; a .npy of bare numbers would need a second file
for the codec that alone can read them. Codes are the codec's own, from 0; `JointVocabulary` gives their place in a
stream.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aromni_jax.codecs import folder as store
from aromni_jax.codecs.media import write_atomic
from aromni_jax.codecs.media_files import Kind, is_inside
from aromni_jax.errors import UserError

SUFFIX = ".codes.jsonl"
MARK = "aromni_jax codec"  # what the comments of decoded files begin with


@dataclasses.dataclass(frozen=True, eq=False)
class CodeRecord:
    """Codes of one picture or utterance.

    Attributes:
      source: path of its file below the folder that was given, with slashes.
      codec: fingerprint of the codec.
      codes: int32 [rows * columns] of a picture, row by row from the top left; int32 [T] of speech.
      samples: of speech, at the codec's rate: the last code may stand for fewer than the others. 0 for a picture.
      figures: what the codec lost, where that was measured.
    """

    source: str
    kind: Kind
    codec: str
    codes: np.ndarray
    samples: int = 0
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def mark(self) -> str:
        """Written into a file that is decoded from it: changes with the codec, the codes and the length."""
        return f"{MARK} {self.codec} codes {store.sha256(self.codes.tobytes() + b'%d' % self.samples)[:16]}"


def write_codes(path: str | os.PathLike, record: CodeRecord) -> None:
    """Writes one record as a file, atomically."""
    row: dict[str, Any] = {"source": record.source, "kind": record.kind, "codec": record.codec}
    row |= {"samples": record.samples} if record.kind == "speech" else {}
    row |= {"figures": dict(record.figures)} if record.figures else {}
    text = json.dumps(row | {"codes": record.codes.tolist()}, ensure_ascii=False, separators=(", ", ": ")) + "\n"
    # A name that is no UTF-8 has lone surrogates: "backslashreplace" writes them as JSON does.
    write_atomic(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def read_codes(path: str | os.PathLike) -> Iterator[tuple[str, CodeRecord | UserError]]:
    """(place, record) of every line of a file, or what is wrong with it; `place` names file and line.

    Raises UserError: the file cannot be read, or holds no line.
    """
    try:
        lines = [(at, line) for at, line in enumerate(Path(path).read_text("utf-8").split("\n"), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); give files that `aromni codec encode` wrote") from error
    if not lines:
        raise UserError(f"{path} is empty; give files that `aromni codec encode` wrote")
    for at, line in lines:
        place = f"{path}, line {at}"
        try:
            yield place, _record(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            yield place, UserError(f"{place}: not a record of codes ({reason}); encode its source again")


def _record(row: Any) -> CodeRecord:
    """ValueError, KeyError or TypeError if it is not one."""
    source, kind, codec, given = row["source"], row["kind"], row["codec"], np.asarray(row["codes"])
    samples, figures = row.get("samples", 0), row.get("figures", {})
    if kind not in ("image", "speech"):
        raise ValueError(f"kind {kind!r} is neither image nor speech")
    if not isinstance(source, str) or not is_inside(source):
        raise ValueError(f"source {source!r} does not lie below the output folder")
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iu":
        raise ValueError("codes are no flat list of whole numbers")
    if not isinstance(samples, int) or not isinstance(codec, str) or not isinstance(figures, dict):
        raise TypeError("samples, codec or figures of a wrong type")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in figures.values()):
        raise ValueError("a figure is no number")
    codes = given.astype(np.int32)
    if not np.array_equal(codes, given):
        raise ValueError("a code is too large")
    return CodeRecord(source, kind, codec, codes, samples, figures)
