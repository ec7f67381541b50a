"""What is in a prepared data set, in words and figures; and a record of it as text, PNG and WAV."""

from __future__ import annotations

import collections
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from aromni_jax.codecs import ImageCodec, SpeechCodec, TextCodec, TokenizerJson, write_png, write_wav
from aromni_jax.data import Manifest, Record, read_manifest
from aromni_jax.data.files import RecordFile
from aromni_jax.errors import UserError
from aromni_jax.prepare.corpus import REJECTS
from aromni_jax.prepare.items import Reject
from aromni_jax.store import unwritable, write_text
from aromni_jax.tasks.answers import read_answer
from aromni_jax.tasks.parts import Image, Part, Speech, Text

_MEASURED = 100_000  # records of a component whose lengths are looked at, evenly spread
_BARS = 8
_WIDEST = 40
_REJECTS_SHOWN = 5


def describe_data_set(path: pathlib.Path) -> list[str]:
    """Lines: the request, the mixture, lengths, packing, rejects. UserError if there is none, or it is damaged."""
    manifest = read_manifest(path)
    lines = [
        f"data set {path}: rows of {manifest.sequence_length} tokens, vocabulary {manifest.vocabulary.fingerprint()}"
    ]
    for name, value in (
        ("codecs", manifest.codecs),
        ("request", manifest.request),
        ("statistics", manifest.statistics),
    ):
        lines.append(f"  {name}: {json.dumps(value, default=str)}")
    for split in manifest.splits:
        lines += _mixture(manifest, split)
        lines += _histogram(path, manifest, split)
    return [*lines, *_rejects(path / REJECTS)]


def _mixture(manifest: Manifest, split: str) -> Iterator[str]:
    whole = manifest.figures(split)
    for name, part in manifest.splits[split].items():
        yield (
            f"{split}/{name}: {part.examples:,} examples ({_share(part.examples, whole['examples'])}), {part.tokens:,} "
            f"tokens ({_share(part.tokens, whole['tokens'])}) in {part.row_count:,} rows, filled "
            f"{part.efficiency['packed']:.1%} (padded: {part.efficiency['padded_to_longest']:.1%})"
        )
        yield _counts("modalities", part.tokens_by_modality)
        if list(part.tasks) != [name]:
            yield _counts("tasks", {task: figures["examples"] for task, figures in part.tasks.items()})
    yield (
        f"{split}: {whole['examples']:,} examples, {whole['tokens']:,} tokens packed together in "
        f"{whole['row_count']:,} rows, filled {whole['packing']['packed']:.1%}"
    )
    yield _counts("modalities", whole["tokens_by_modality"])


def _histogram(path: pathlib.Path, manifest: Manifest, split: str) -> Iterator[str]:
    """Tokens of the examples, in bars; each measured one stands for as many as there are beside it."""
    found: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for part in manifest.splits[split].values():
        file = RecordFile(path / part.records)
        if not len(file):
            continue
        measured = np.linspace(0, len(file) - 1, min(len(file), _MEASURED)).astype(int).tolist()
        lengths = np.array([len(Record.from_bytes(file[at], file.where(at))) for at in measured])
        found.append(lengths)
        weights.append(np.full(len(lengths), len(file) / len(lengths)))
    if not found:
        return
    lengths = np.concatenate(found)
    shortest, longest = int(lengths.min()), int(lengths.max())
    bars = min(_BARS, longest - shortest + 1)
    edges = np.linspace(shortest - 1, longest, bars + 1).round().astype(int)
    counts, _ = np.histogram(lengths, edges + 1, weights=np.concatenate(weights))
    yield f"  tokens of an example: {shortest} to {longest}"
    for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True):
        bar = "#" * int(np.ceil(_WIDEST * count / counts.max()))
        yield f"  {low + 1:>6}..{high:<6} {round(count):>10,}  {bar}".rstrip()


def _rejects(file: pathlib.Path) -> Iterator[str]:
    if not file.is_file():
        return
    reasons: collections.Counter[str] = collections.Counter()
    shown: list[str] = []
    with file.open(errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                reject = Reject(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(f"{file}, line {number}: no reject ({error}); delete the line") from None
            reasons[reject.reason] += 1
            if len(shown) < _REJECTS_SHOWN:
                shown.append(f"  {reject.line}")
    yield f"rejected: {reasons.total():,}" + (f", named in {file}" if reasons else "")
    if reasons:
        yield _counts("reasons", dict(reasons.most_common()))
    yield from shown


def _counts(title: str, counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return f"  {title}: " + ", ".join(f"{name} {count:,} ({_share(count, total)})" for name, count in counts.items())


def _share(count: int, total: int) -> str:
    return f"{count / max(total, 1):.1%}"


# -- a record as media ----------------------------------------------------------------------------------


def record_at(path: pathlib.Path, split: str, number: int) -> Record:
    """Record `number` of a split, counted over its components; UserError if there is none, or it is damaged."""
    manifest = read_manifest(path)
    left = number
    for part in manifest.components(split).values():
        if 0 <= left < part.examples:
            file = RecordFile(path / part.records)
            record = Record.from_bytes(file[left], file.where(left))
            record.check(manifest.vocabulary, file.where(left))
            return record
        left -= part.examples
    raise UserError(f"{path}: {split} has {number - left:,} records, counted from 0: there is no {number}")


def write_record(path: pathlib.Path, record: Record, out: pathlib.Path, codecs: str | None = None) -> list[str]:
    """What a record of a data set holds as out/1_text.txt, out/2_image.png, out/3_speech.wav ..., in its order.

    Args:
      codecs: folder or world; None = those that the data set was made with.

    Returns:
      The files' names.

    Raises:
      UserError: codecs that are not there, or not the data set's; a file that cannot be written.
    """
    manifest = read_manifest(path)
    places = _places(path, manifest, codecs)
    text_codec = _opened(manifest, "text", places)
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from None
    for number, part in enumerate(_parts(record, manifest, text_codec), 1):
        kind = type(part).__name__.lower()
        file = out / f"{number}_{kind}.{ {Text: 'txt', Image: 'png', Speech: 'wav'}[type(part)] }"
        if isinstance(part, Text):
            write_text(file, part.text + "\n")
        else:
            codec = _opened(manifest, kind, places)
            if isinstance(part, Image):
                write_png(file, codec.to_pil(part.codes[None])[0])
            else:
                write_wav(file, np.clip(codec.decode([part.codes])[0], -1, 1), codec.sample_rate)
        written.append(file.name)
    return written


def _parts(record: Record, manifest: Manifest, text_codec: Any) -> Iterator[Part]:
    """Turn by turn: reading stops at the end of an answer."""
    v = manifest.vocabulary
    ends = np.flatnonzero(np.isin(record.tokens, (v.eos, v.eom))) + 1
    for start, stop in itertools.pairwise([0, *ends.tolist(), len(record)]):
        # A prompt's end closes a run of text as an answer's does.
        turn = record.tokens[start:stop].tolist()
        cut = turn.index(v.eoh) + 1 if v.eoh in turn else 0
        for piece in (turn[:cut], turn[cut:]):
            yield from read_answer(piece, v, text_codec).parts


def _places(path: pathlib.Path, manifest: Manifest, given: str | None) -> dict[str, str]:
    if given:
        return dict.fromkeys(("text", "image", "speech"), given)
    world = manifest.request.get("world")
    places = dict.fromkeys(("text", "image", "speech"), world) if world else manifest.request.get("codecs_at")
    if not places:
        raise UserError(f"{path}: made without codecs; name those of its ids with --world")
    return places


def _opened(manifest: Manifest, kind: str, places: Mapping[str, str]) -> Any:
    """The codec of a kind; UserError if it is not the one that the data set was made with."""
    if manifest.codecs and kind not in manifest.codecs:
        raise UserError(f"the data set came with its {kind} codes: no codec here makes {kind} of them")
    if kind not in places:
        raise UserError(f"the data set does not say where its {kind} codec is; name the codecs with --world")
    place = os.fspath(places[kind])
    if kind == "text":
        codec: Any = TokenizerJson.load(place) if place.endswith(".json") else TextCodec.load(place)
    else:
        codec = ImageCodec.load(place) if kind == "image" else SpeechCodec.load(place)
    wanted = manifest.codecs.get(kind, codec.fingerprint)
    if wanted != codec.fingerprint:
        raise UserError(f"{place}: {kind} codec {codec.fingerprint}, and the data set was made with {wanted}")
    return codec
