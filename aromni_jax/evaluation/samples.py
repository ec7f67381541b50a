"""`samples/`: judged answers as media files and token timelines, in the form that the report reads."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from aromni_jax import store
from aromni_jax.codecs import write_png, write_wav
from aromni_jax.evaluation.held_out import Item
from aromni_jax.tasks import Assistant, Image, Part, Speech

PROMPT = -1  # state of a token that the model was given


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
            samples.append(_sample(folder, assistant, item, f"{item.task}_{number}"))
    store.write_json(folder / "samples.json", samples)


def _sample(folder: pathlib.Path, assistant: Assistant, item: Item, name: str) -> dict[str, Any]:
    v, result = assistant.vocabulary, item.reply.result
    prompt = [int(token) for token in item.reply.prompt]
    tokens = prompt + result.tokens.tolist()
    pieces = [int(v.text_pieces([token])[0]) if token in v.text else None for token in tokens]
    usage = result.usage
    return {
        "task": item.task,
        "title": f"{item.task.replace('_', ' ')}: {item.expected}",
        "input": [_segment(folder, assistant, part, f"{name}_in_{n}") for n, part in enumerate(item.inputs)],
        "output": [
            _segment(folder, assistant, part, f"{name}_out_{n}") for n, part in enumerate(item.reply.answer.parts)
        ],
        "expected": item.expected,
        "judged": item.judged,
        "correct": item.correct,
        "tokens": tokens,
        "modalities": v.modality(tokens).tolist(),
        "states": [PROMPT] * len(prompt) + result.states.tolist(),
        "labels": [None if piece is None else assistant.text_codec.decode([piece]) for piece in pieces],
        "clocks": {
            "first token (s)": usage.first_token,
            "first speech code (s)": usage.first_speech,
            "total (s)": usage.total,
        },
    }


def _segment(folder: pathlib.Path, assistant: Assistant, part: Part, name: str) -> dict[str, Any]:
    if isinstance(part, Speech):
        codec = assistant.speech_codec
        assert codec is not None, "a vocabulary with speech comes with its codec"
        wave = np.asarray(codec.decode([part.codes])[0])
        write_wav(folder / f"{name}.wav", wave, codec.sample_rate)
        return {"kind": "speech", "file": f"{name}.wav", "seconds": len(wave) / codec.sample_rate}
    if isinstance(part, Image):
        assert assistant.image_codec is not None, "a vocabulary with pictures comes with its codec"
        write_png(folder / f"{name}.png", assistant.image_codec.to_pil(part.codes[None])[0])
        return {"kind": "image", "file": f"{name}.png"}
    return {"kind": "text", "text": part.text}
