"""Replies as files: one item of a task, or one turn of a dialog in the reference's layout (SPEC 6.9)."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from aromni_jax.codecs import write_png, write_wav
from aromni_jax.codecs.media import write_atomic
from aromni_jax.errors import UserError
from aromni_jax.tasks.answers import Answer, Reply, to_media
from aromni_jax.tasks.assistant import Assistant
from aromni_jax.tasks.parts import Part, Text


def write_reply(assistant: Assistant, reply: Reply, folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Write what a reply holds as name.txt, name.wav, name.png; returns its record for a JSON file."""
    media = assistant.media(reply)
    files = []
    if media.text:
        files.append(f"{name}.txt")
        _write_text(folder / files[-1], media.text + "\n")
    if media.wave is not None:
        files.append(f"{name}.wav")
        write_wav(folder / files[-1], media.wave, media.sample_rate)
    for number, image in enumerate(media.images):
        files.append(f"{name}.png" if number == 0 else f"{name}_{number + 1}.png")
        write_png(folder / files[-1], image)
    record: dict[str, Any] = {"files": files}
    if media.text:
        record["text"] = media.text
    if media.wave is not None:
        record["seconds_of_speech"] = round(len(media.wave) / media.sample_rate, 3)
    return record | _how(reply)


def write_turn(
    assistant: Assistant, reply: Reply, folder: pathlib.Path, dialog_id: str, said: Mapping[str, Any], save_tokens: bool
) -> dict[str, Any]:
    """Write a turn's reply into a new folder; returns what its meta.json holds.

        folder/<dialog_id>/turn_{index:04d}_{uid}/{decoded_text.txt, meta.json, output_tokens.json}
                                                  {uid}_seg{n}_img1_{file uid}.png, {uid}_seg{n}_audio_{file uid}.wav

    The index counts the turns that are there; segments are counted from 1, a run of text is one. The folder appears
    whole. decoded_text.txt has what the model heard and what it says, no pieces of pictures and speech; sound is not
    made louder. Other than in the reference are also the keys of meta.json behind "saved_audios".

    Args:
      said: the keys of meta.json that tell of the user's side.
      save_tokens: whether to write output_tokens.json, the ids of the reply.
    """
    dialog = folder / file_name(dialog_id)
    index = sum(path.is_dir() for path in dialog.glob("turn_*")) + 1
    uid = _uid()
    final = dialog / f"turn_{index:04d}_{uid}"
    partial = final.with_name(f".{final.name}")
    images, audios = [], []
    try:
        for number, part in _segments(reply.answer):
            media = to_media(Answer((part,)), assistant.speech_codec, assistant.image_codec)
            if media.wave is not None:
                audios.append(f"{uid}_seg{number}_audio_{_uid()}.wav")
                write_wav(partial / audios[-1], media.wave, media.sample_rate)
            for image in media.images:
                images.append(f"{uid}_seg{number}_img1_{_uid()}.png")
                write_png(partial / images[-1], image)
        texts = [part.text for part in reply.answer.parts if isinstance(part, Text)]
        _write_text(partial / "decoded_text.txt", " ".join(text for text in texts if text) + "\n")
        if save_tokens:
            _write_text(partial / "output_tokens.json", json.dumps(reply.result.tokens.tolist()))
        meta = {
            "dialog_id": dialog_id,
            "turn_index": index,
            "run_uid": uid,
            **said,
            "decoded_text_file": (final / "decoded_text.txt").as_posix(),
            "saved_images": [(final / name).as_posix() for name in images],
            "saved_audios": [(final / name).as_posix() for name in audios],
            "reply": reply.answer.text,
            **_how(reply),
        }
        write_json(partial / "meta.json", meta)
        os.rename(partial, final)
    except OSError as error:
        raise UserError(f"cannot write {final} ({error.strerror}); check the folder and the free space") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return meta


def write_json(path: pathlib.Path, value: Any) -> None:
    """Indented JSON, atomically; `UserError` if it cannot be written."""
    _write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_name(name: str) -> str:
    """A name from anywhere as that of a file or folder, which cannot leave the one it is put in."""
    return re.sub(r"[^\w.-]+", "_", name)[:60].strip("._") or "unnamed"


def _how(reply: Reply) -> dict[str, Any]:
    """How a reply came about: keys of a record."""
    usage = reply.result.usage
    record: dict[str, Any] = {"finish": reply.result.finish}
    if reply.answer.transcript is not None:
        record["transcript"] = reply.answer.transcript
    if reply.dropped.turns:
        record["dropped"] = {"turns": reply.dropped.turns, "tokens": reply.dropped.tokens}
    record["usage"] = {
        "prompt_tokens": usage.prompt_tokens,
        "reused_tokens": usage.reused_tokens,
        "fed_tokens": usage.fed_tokens,
        "new_tokens": usage.new_tokens,
        "first_token_seconds": round(usage.first_token, 3),
        "total_seconds": round(usage.total, 3),
    }
    of_speech = {
        "first_speech_seconds": usage.first_speech,
        "first_audio_seconds": usage.first_audio,
        "real_time_factor": usage.real_time_factor,
    }
    record["usage"] |= {name: round(value, 3) for name, value in of_speech.items() if value is not None}
    return record


def _segments(answer: Answer) -> Iterator[tuple[int, Part]]:
    """(number, part) of all speech and pictures; text before, between and behind them counts as one segment each."""
    number, after_text = 0, False
    for part in answer.parts:
        is_text = isinstance(part, Text)
        number += not (is_text and after_text)
        after_text = is_text
        if not is_text:
            yield number, part


def _uid() -> str:
    return uuid.uuid4().hex[:8]


def _write_text(path: pathlib.Path, text: str) -> None:
    # What UTF-8 cannot hold (half of a surrogate pair, in a bad line that is told of) becomes its JSON escape.
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))
