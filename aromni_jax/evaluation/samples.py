"""`samples/`: answers as media files and token timelines, in the form that the report reads."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from aromni_jax import store
from aromni_jax.codecs import ImageCodec, SpeechCodec, TextCodec, write_png, write_wav
from aromni_jax.decoding import Result
from aromni_jax.evaluation.held_out import Item
from aromni_jax.tasks import Assistant, Image, Part, Speech
from aromni_jax.vocabulary import JointVocabulary

PROMPT = -1  # state of a token that the model was given
_MOST_CODES = 8  # shown of media that no codec plays


class Codecs(Protocol):
    """What makes tokens into media; an `Assistant` is one. What no codec plays is shown as its codes."""

    @property
    def vocabulary(self) -> JointVocabulary: ...

    @property
    def text_codec(self) -> TextCodec | None: ...

    @property
    def image_codec(self) -> ImageCodec | None: ...

    @property
    def speech_codec(self) -> SpeechCodec | None: ...


def write_samples(folder: pathlib.Path, assistant: Assistant, items: Sequence[Item], per_task: int = 4) -> None:
    """Write the first `per_task` items of each task under `folder`, and samples.json.

    Nothing is chosen by hand: wrong answers show as often as they occur.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown: dict[str, int] = {}
    samples = []
    for item in items:
        number = shown[item.task] = shown.get(item.task, 0) + 1
        if number <= per_task:
            name = f"{item.task}_{number}"
            samples.append(
                {
                    "task": item.task,
                    "title": f"{item.task.replace('_', ' ')}: {item.expected}",
                    "input": write_parts(folder, assistant, item.inputs, f"{name}_in"),
                    "output": write_parts(folder, assistant, item.reply.answer.parts, f"{name}_out"),
                    "expected": item.expected,
                    "judged": item.judged,
                    "correct": item.correct,
                    **timeline(assistant, item.reply.prompt, item.reply.result),
                }
            )
    store.write_json(folder / "samples.json", samples)


def timeline(codecs: Codecs, prompt: Sequence[int], result: Result) -> dict[str, Any]:
    """The fields of a sample that tell every token of prompt and answer, and the clocks."""
    v = codecs.vocabulary
    prompt = [int(token) for token in prompt]
    tokens = prompt + result.tokens.tolist()
    pieces = [int(v.text_pieces([token])[0]) if token in v.text else None for token in tokens]
    text, usage = codecs.text_codec, result.usage
    return {
        "tokens": tokens,
        "modalities": v.modality(tokens).tolist(),
        "states": [PROMPT] * len(prompt) + result.states.tolist(),
        "labels": [None if piece is None or text is None else text.decode([piece]) for piece in pieces],
        "clocks": {
            "first token (s)": usage.first_token,
            "first speech code (s)": usage.first_speech,
            "total (s)": usage.total,
        },
    }


def write_parts(folder: pathlib.Path, codecs: Codecs, parts: Sequence[Part], name: str) -> list[dict[str, Any]]:
    """The parts as segments of a sample, with media as files whose names begin with `name`."""
    return [_segment(folder, codecs, part, f"{name}_{number}") for number, part in enumerate(parts)]


def _segment(folder: pathlib.Path, codecs: Codecs, part: Part, name: str) -> dict[str, Any]:
    if isinstance(part, Speech) and (speech := codecs.speech_codec) is not None:
        wave = np.asarray(speech.decode([part.codes])[0])
        write_wav(folder / f"{name}.wav", wave, speech.sample_rate)
        return {"kind": "speech", "file": f"{name}.wav", "seconds": len(wave) / speech.sample_rate}
    if isinstance(part, Image) and (image := codecs.image_codec) is not None:
        write_png(folder / f"{name}.png", image.to_pil(part.codes[None])[0])
        return {"kind": "image", "file": f"{name}.png"}
    if isinstance(part, Speech | Image):
        first = " ".join(map(str, part.codes[:_MOST_CODES].tolist())) + (" ..." if len(part) > _MOST_CODES else "")
        return {"kind": "text", "text": first, "label": f"{len(part)} {type(part).__name__.lower()} codes"}
    return {"kind": "text", "text": part.text}
