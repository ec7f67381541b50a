"""Dialogs in a file, in the reference's schema (SPEC 6.9): who says what in which order, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from aromni_jax.codecs import read_audio, read_image
from aromni_jax.errors import UserError
from aromni_jax.tasks.assistant import Assistant
from aromni_jax.tasks.batch import read_jsonl, read_text
from aromni_jax.tasks.parts import Part, Speech, Text
from aromni_jax.tasks.synthesis import Synthesiser, Voice, synthesise

_TEXTS = ("text", "wav_path", "audio_path", "user_append_text", "speaker_wav", "prompt_text")
_SILENCE = ("silence_head_sec", "silence_tail_sec", "silence_head_tokens", "silence_tail_tokens")
FIELDS = (*_TEXTS, "image_paths", *_SILENCE, "reset", "dialog_id")
_MOST_SILENCE = 60.0  # seconds


@dataclasses.dataclass(frozen=True)
class FileTurn:
    """A turn as it stands in the file.

    Attributes:
      dialog_id: whose it is.
      number: its place in its dialog, from 1.
      value: JSON, or the `UserError` of what is no turn.
      fresh: whether it begins without history: the first one, one of another dialog_id than the last, or by `reset`.
    """

    dialog_id: str
    number: int
    value: Any
    fresh: bool


@dataclasses.dataclass(frozen=True)
class UserTurn:
    """What the user says in a turn; the fields of SPEC 6.9 with paths that can be opened."""

    text: str | None = None
    wav_path: pathlib.Path | None = None
    image_paths: tuple[pathlib.Path, ...] = ()
    user_append_text: str | None = None
    voice: Voice = dataclasses.field(default_factory=Voice)
    silence_head_sec: float = 0.0
    silence_tail_sec: float = 0.0
    silence_head_tokens: tuple[int, ...] = ()
    silence_tail_tokens: tuple[int, ...] = ()

    @classmethod
    def parse(cls, value: Any, base: pathlib.Path) -> UserTurn:
        """From JSON; paths are relative to `base`. `UserError` says which field is wrong."""
        if isinstance(value, UserError):
            raise value
        if not isinstance(value, dict):
            raise UserError(f"a turn is an object, got {value!r}")
        for field in value:
            if field not in FIELDS:
                near = difflib.get_close_matches(field, FIELDS, 1)
                raise UserError(
                    f"unknown field {field!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {FIELDS}")
                )
        for field in _TEXTS:
            if not isinstance(value.get(field), str | None):
                raise UserError(f"{field} must be a text, got {value[field]!r}")
        given = {field: value[field] for field in FIELDS if value.get(field)}  # "" and null are as good as nothing
        paths = given.get("image_paths", [])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise UserError(f"image_paths must be a list of paths, got {paths!r}")
        wav = given.get("wav_path", given.get("audio_path"))
        text = given.get("text", "").strip() or None
        if wav is None and text is None:
            raise UserError("a turn needs text or wav_path")
        speaker = given.get("speaker_wav")
        return cls(
            text=text,
            wav_path=None if wav is None else base / wav,
            image_paths=tuple(base / path for path in paths),
            user_append_text=value.get("user_append_text"),  # here "" means something: none
            voice=Voice(None if speaker is None else base / speaker, given.get("prompt_text")),
            silence_head_sec=_seconds("silence_head_sec", given),
            silence_tail_sec=_seconds("silence_tail_sec", given),
            silence_head_tokens=_tokens("silence_head_tokens", given),
            silence_tail_tokens=_tokens("silence_tail_tokens", given),
        )

    def said(self, append_text: str, synthesiser: str) -> dict[str, Any]:
        """The keys of the reference's meta.json that tell of the user's side, and the name of the synthesiser."""
        return {
            "text": self.text,
            "wav_path": None if self.wav_path is None else self.wav_path.as_posix(),
            "image_paths": [path.as_posix() for path in self.image_paths] or None,
            "user_append_text": append_text if self.user_append_text is None else self.user_append_text,
            "tts": {
                "speaker_wav": None if self.voice.wav is None else self.voice.wav.as_posix(),
                "prompt_text": self.voice.text,
                "silence_head_sec": self.silence_head_sec,
                "silence_tail_sec": self.silence_tail_sec,
                "silence_head_tokens": list(self.silence_head_tokens) or None,
                "silence_tail_tokens": list(self.silence_tail_tokens) or None,
                "synthesiser": synthesiser,
            },
        }


def read_dialogs(path: pathlib.Path) -> list[FileTurn]:
    """The turns of a file: JSON or JSON lines, a dialog {dialog_id, turns}, several of them, or turns alone.

    What is wrong with a dialog or a line stands in the place of its turns. Raises UserError: no such file, no JSON at
    all, nothing in it.
    """
    rows = _rows(path)
    turns: list[FileTurn] = []
    last = None
    for dialog_id, values in _dialogs(path, rows):
        for number, value in enumerate(values, 1):
            own, reset = dialog_id, number == 1
            if isinstance(value, Mapping):
                own, reset = str(value.get("dialog_id") or dialog_id), reset or bool(value.get("reset"))
            turns.append(FileTurn(own, number, value, reset or own != last))
            last = own
    if not turns:
        raise UserError(f"{path}: holds no turn; expected a dialog {{dialog_id, turns}}, several of them, or turns")
    return turns


def user_parts(assistant: Assistant, turn: UserTurn, synthesiser: Synthesiser | None) -> list[Part]:
    """Pictures first, then what is said: text, which wins, or a recording. Without a synthesiser text stays text.

    Silence stands before and behind what is heard; its seconds are encoded on their own (SPEC 6.9).
    Raises UserError: a file that cannot be read, a token that is no speech code, a text that cannot be spoken.
    """
    parts: list[Part] = list(assistant.look([read_image(path) for path in turn.image_paths]))
    if turn.text is not None:
        if synthesiser is None:
            return [*parts, Text(turn.text)]
        wave = synthesise(synthesiser, turn.text, turn.voice, assistant.sample_rate)
    elif turn.wav_path is not None:
        wave = read_audio(turn.wav_path, assistant.sample_rate)
    else:
        return parts
    codes = [
        _silence(assistant, turn.silence_head_tokens, turn.silence_head_sec),
        assistant.hear([wave])[0].codes,
        _silence(assistant, turn.silence_tail_tokens, turn.silence_tail_sec),
    ]
    return [*parts, Speech(np.concatenate(codes))]


def _silence(assistant: Assistant, tokens: Sequence[int], seconds: float) -> np.ndarray:
    """int32 codes; the tokens if there are any."""
    samples = round(seconds * assistant.sample_rate)
    if tokens:
        return assistant.vocabulary.speech_codes(tokens)
    return assistant.hear([np.zeros(samples, np.float32)])[0].codes if samples else np.zeros(0, np.int32)


def _rows(path: pathlib.Path) -> list[Any]:
    """The file as a list of JSON values; `UserError`s stand for lines that are none."""
    text = read_text(path)
    try:
        value = json.loads(text)
        return value if isinstance(value, list) else [value]
    except (ValueError, RecursionError) as error:
        rows = read_jsonl(path)
        lines = [UserError(f"line {at}: {row}") if isinstance(row, UserError) else row for at, row in rows]
        if path.suffix == ".jsonl" or (lines and isinstance(lines[0], dict)):
            return lines
        raise UserError(f"{path}: not JSON ({error})") from None


def _dialogs(path: pathlib.Path, rows: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """(dialog_id, its turns); a bad dialog is one bad turn."""
    if not any(isinstance(row, dict) and "turns" in row for row in rows):
        yield "dialog_0000", rows
        return
    for number, row in enumerate(rows):
        if isinstance(row, UserError):
            yield f"dialog_{number:04d}", [row]
            continue
        if not isinstance(row, dict) or not isinstance(row.get("turns"), list):
            got = row.get("turns") if isinstance(row, dict) else row
            yield f"dialog_{number:04d}", [UserError(f"{path}, dialog {number}: turns must be a list, got {got!r}")]
            continue
        shared = {field: row[field] for field in ("speaker_wav", "prompt_text") if field in row}
        turns = [shared | turn if isinstance(turn, dict) else turn for turn in row["turns"]]
        yield str(row.get("dialog_id") or f"dialog_{number:04d}"), turns


def _seconds(field: str, given: Mapping[str, Any]) -> float:
    value = given.get(field, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_SILENCE:
        raise UserError(f"{field} must be seconds between 0 and {_MOST_SILENCE:g}, got {value!r}")
    return float(value)


def _tokens(field: str, given: Mapping[str, Any]) -> tuple[int, ...]:
    value = given.get(field, [])
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < 2**31 for token in value):
        raise UserError(f"{field} must be a list of token ids, got {value!r}")
    return tuple(value)
