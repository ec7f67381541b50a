"""Samples of a report: media as data URIs, spectrogram pictures, and the token timeline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from aromni_jax.codecs.media import read_audio, read_image
from aromni_jax.decoding.grammar import State
from aromni_jax.errors import UserError
from aromni_jax.evaluation.report_media import data_uri, enlargement, mel_decibels, spectrogram_uri
from aromni_jax.vocabulary import JointVocabulary, Modality

_T = TypeVar("_T")

PROMPT = -1  # in the place of a state: the model was given this token

MARKER_MEANINGS = {
    "bos": "start of the sequence",
    "pad": "padding",
    "eos": "end of the sequence",
    "unk": "unknown",
    "boi": "a picture opens",
    "eoi": "the picture closes",
    "boa": "speech opens",
    "eoa": "speech closes",
    "eoh": "end of the human's turn",
    "eom": "end of the model's turn",
    "ins": "transcript of what was heard opens",
    "res": "response opens",
}
_UNITS = {Modality.IMAGE: "picture code", Modality.SPEECH: "speech code", Modality.TEXT: "text piece"}
_MEDIA_TYPES = {
    "image": {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"},
    "speech": {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"},
}
_SPECTROGRAM_RATE = 16_000


@dataclass(frozen=True)
class Segment:
    """One piece of an input or output; `uri` holds the media, `picture` the spectrogram of speech."""

    kind: str
    text: str = ""
    label: str = ""
    uri: str = ""
    picture: str = ""
    width: int = 0
    height: int = 0
    crisp: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One token of a timeline; `state` is the one it was chosen in (None in the prompt), `meaning` is for people."""

    token: int
    modality: Modality
    state: State | None
    meaning: str


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one kind, in words, for readers who cannot use the coloured cells."""

    modality: Modality
    text: str


@dataclass(frozen=True)
class Sample:
    """One record of `samples.json`, ready to draw."""

    task: str
    title: str
    turns: tuple[tuple[tuple[Segment, ...], tuple[Segment, ...]], ...]
    expected: str | None
    judged: str | None
    correct: bool | None
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]
    clocks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def media_bytes(self) -> int:
        """Length of the data URIs it brings into the page."""
        return sum(len(s.uri) + len(s.picture) for turn in self.turns for side in turn for s in side)

    @property
    def answered_in_words(self) -> bool:
        """Whether what was judged is the text that the output shows."""
        return any(part.text == self.judged for _, made in self.turns for part in made)

    @property
    def cells_json(self) -> str:
        """[id, meaning, state or null] of every token, for the page's script."""
        rows = [[c.token, c.meaning, None if c.state is None else c.state.name] for c in self.cells]
        return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the model was given; the others it made."""
        return sum(cell.state is None for cell in self.cells)


def read_samples(folder: Path, records: Sequence[Any], vocabulary: JointVocabulary | None) -> list[Sample]:
    """Turn the records of `folder/samples.json` into samples.

    A record is `{"task", "title", "input": [segment], "output": [segment], "expected", "judged", "correct", "tokens",
    "modalities", "states", "clocks"}`; optional are `"labels"` (what each token stands for, one string or null per
    token) and, in place of input and output, `"turns": [{"input": [...], "output": [...]}]`. A segment is
    `{"kind": "text", "text"}`, `{"kind": "image", "file"}` or `{"kind": "speech", "file", "seconds"}`, each with an
    optional `"label"`. Raises UserError, naming record and field, for anything else and for missing media.
    """
    return [
        _sample(folder, record, vocabulary, f"{folder / 'samples.json'}, record {at}")
        for at, record in enumerate(records)
    ]


def _sample(folder: Path, record: Any, vocabulary: JointVocabulary | None, where: str) -> Sample:
    if not isinstance(record, Mapping) or not isinstance(record.get("task"), str):
        raise UserError(f'{where}: expected an object with a "task"; write the samples again')
    turns = _of_type(list, record, "turns", where) or [{key: record.get(key) for key in ("input", "output")}]
    if not all(isinstance(turn, Mapping) for turn in turns):
        raise UserError(f'{where}: a turn is {{"input": [...], "output": [...]}}; write the samples again')
    task = record["task"]
    cells = _cells(record, vocabulary, where)
    return Sample(
        task=task,
        title=str(record.get("title") or ""),
        turns=tuple(
            (
                tuple(_segment(folder, part, where) for part in _of_type(list, turn, "input", where)),
                _heard_first(task, [_segment(folder, part, where) for part in _of_type(list, turn, "output", where)]),
            )
            for turn in turns
        ),
        expected=record.get("expected"),
        judged=record.get("judged"),
        correct=None if record.get("correct") is None else _of_type(bool, record, "correct", where),
        cells=cells,
        runs=tuple(_runs(cells)),
        clocks=_of_type(dict, record, "clocks", where),
    )


def _of_type(kind: type[_T], values: Mapping[str, Any], key: str, where: str) -> _T:
    """The value, an empty one where it is missing or null."""
    found = values.get(key)
    if found is not None and not isinstance(found, kind):
        raise UserError(f'{where}: "{key}" is {found!r:.60}; expected a {kind.__name__}; write the samples again')
    return kind() if found is None else found


def _heard_first(task: str, parts: list[Segment]) -> tuple[Segment, ...]:
    """A chat answer opens with the transcript of what was heard (SPEC 2.4): say so unless the record does."""
    if task == "chat" and len(parts) > 1 and parts[0].kind == parts[1].kind == "text" and not parts[0].label:
        parts[0] = Segment("text", text=parts[0].text, label="heard")
    return tuple(parts)


def read_segments(folder: Path, parts: Sequence[Any], where: str) -> tuple[Segment, ...]:
    """Segments of a record with media in `folder`; UserError, naming `where`, as in `read_samples`."""
    return tuple(_segment(folder, part, where) for part in parts)


# -- media ----------------------------------------------------------------------------------------------


def _segment(folder: Path, part: Any, where: str) -> Segment:
    kind = part.get("kind") if isinstance(part, Mapping) else None
    if kind == "text":
        return Segment("text", text=str(part.get("text", "")), label=str(part.get("label") or ""))
    if kind not in _MEDIA_TYPES or not isinstance(part.get("file"), str):
        raise UserError(f'{where}: a segment is text, or an image or speech with a "file"; found {str(part)[:80]}')
    path = folder / part["file"].replace("\0", "?")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{where}: file {part['file']!r} lies outside {folder}; keep the media in that folder")
    media_type = _MEDIA_TYPES[kind].get(path.suffix.lower())
    if media_type is None:
        raise UserError(f"{where}: {path.name} is no {kind} file; use one of {', '.join(_MEDIA_TYPES[kind])}")
    label = str(part.get("label") or "")
    if kind == "image":
        width, height = read_image(path).size
        factor = enlargement(width)
        return Segment(
            "image", label=label, uri=data_uri(media_type, path.read_bytes()),
            width=width * factor, height=height * factor, crisp=factor > 1,
        )  # fmt: skip
    wave_n = read_audio(path, _SPECTROGRAM_RATE)
    picture = spectrogram_uri(mel_decibels(wave_n, _SPECTROGRAM_RATE))
    return Segment(
        "speech", label=label, uri=data_uri(media_type, path.read_bytes()), picture=picture,
        seconds=len(wave_n) / _SPECTROGRAM_RATE,
    )  # fmt: skip


# -- tokens ---------------------------------------------------------------------------------------------


def _cells(record: Mapping[str, Any], vocabulary: JointVocabulary | None, where: str) -> tuple[Cell, ...]:
    tokens = record.get("tokens") or []
    kinds = record.get("modalities") or [Modality.MARKER] * len(tokens)
    states = record.get("states") or [PROMPT] * len(tokens)
    labels = record.get("labels") or [None] * len(tokens)
    for name, row in (("modalities", kinds), ("states", states), ("labels", labels)):
        if len(row) != len(tokens):
            raise UserError(f"{where}: {len(tokens)} tokens but {len(row)} {name}; give one for each token")
    try:
        return tuple(
            Cell(
                int(token),
                Modality(kind),
                None if state == PROMPT else State(state),
                _meaning(int(token), Modality(kind), label, vocabulary),
            )
            for token, kind, state, label in zip(tokens, kinds, states, labels, strict=True)
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: bad token, modality (0..3) or state (-1..{max(State)}): {error}") from None


def _meaning(token: int, kind: Modality, label: str | None, vocabulary: JointVocabulary | None) -> str:
    if kind is Modality.MARKER:
        names = {} if vocabulary is None else {number: name for name, number in vocabulary.markers.items()}
        name = names.get(token, label or "")
        return f"{name}: {MARKER_MEANINGS[name]}" if name in MARKER_MEANINGS else name or "marker"
    if label:
        return f"{kind.name.lower()} “{label}”" if kind is Modality.TEXT else label
    if vocabulary is None:
        return _UNITS[kind]
    first = {
        Modality.IMAGE: vocabulary.image,
        Modality.SPEECH: vocabulary.speech,
        Modality.TEXT: vocabulary.text,
    }
    return f"{_UNITS[kind]} {token - first[kind].start}"


def _runs(cells: Sequence[Cell]) -> Iterator[Run]:
    for (kind, _), group in groupby(cells, key=lambda cell: (cell.modality, cell.state is None)):
        row = list(group)
        if kind is Modality.MARKER:
            yield from (Run(kind, cell.meaning.split(":")[0]) for cell in row)
        elif kind is Modality.TEXT and all("“" in cell.meaning for cell in row):
            pieces = "".join(cell.meaning.split("“")[1].removesuffix("”") for cell in row)
            yield Run(kind, pieces.replace("▁", " ").strip() or "␣")
        else:
            unit = _UNITS[kind] + ("s" if len(row) > 1 else "")
            yield Run(kind, f"{len(row)} {unit}")


def within_budget(samples: Sequence[Sample], budget: int) -> list[Sample]:
    """As many samples as fit into `budget` bytes of media, one of each task in turn, in their own order."""
    queues = {task: [s for s in samples if s.task == task] for task in dict.fromkeys(s.task for s in samples)}
    kept: set[int] = set()
    for rank in range(max((len(queue) for queue in queues.values()), default=0)):
        for queue in queues.values():
            if rank < len(queue) and queue[rank].media_bytes <= budget:
                kept.add(id(queue[rank]))
                budget -= queue[rank].media_bytes
    return [sample for sample in samples if id(sample) in kept]
