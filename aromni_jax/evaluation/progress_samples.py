"""Answers of a model in training to the same held-out prompts, again and again: what it has learnt so far.

The prompts come from the records of the held-out split, so any data set will do, of one world or of none.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
import soundfile
from jax.sharding import Mesh

from aromni_jax import data, store
from aromni_jax.codecs import ImageCodec, SpeechCodec, TextCodec
from aromni_jax.config import ModelConfig, RunConfig
from aromni_jax.data import Manifest
from aromni_jax.decoding import Engine, Request, Result
from aromni_jax.errors import UserError
from aromni_jax.evaluation.samples import timeline, write_parts
from aromni_jax.parallel import alone
from aromni_jax.tasks import make_request, read_answer, task_options
from aromni_jax.vocabulary import TASKS, JointVocabulary

Shown = dict[str, str | PIL.Image.Image | tuple[np.ndarray, int]]
FOLDER = "samples"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A held-out example of a task: what the model is given, and the answer that the data has."""

    task: str
    tokens: list[int]
    answer: list[int]


@dataclasses.dataclass(frozen=True)
class Codecs:
    """As `samples.Codecs`; None where there is none for these tokens."""

    vocabulary: JointVocabulary
    text_codec: TextCodec | None
    image_codec: ImageCodec | None
    speech_codec: SpeechCodec | None


@dataclasses.dataclass(frozen=True)
class _Model:
    params: Any
    config: ModelConfig
    vocabulary: JointVocabulary


class ProgressSamples:
    """Called with parameters and step: answers one prompt of every held-out task into `samples/STEP` of a run folder.

    The prompts and the seeds are the same every time. The engine works on the parameters where they are; it takes the
    layers apart, which needs the memory of the layers once more, split over the devices as they are, for as long as the
    call lasts. Codecs are loaded for the call, too. Of several processes all decode, and the first one writes.

    Args:
      say: gets a line for every codec that is missing.

    Raises:
      UserError: no held-out split, or no example with an answer in it.
    """

    def __init__(self, config: RunConfig, run_directory: pathlib.Path, say: Callable[[str], None] = print) -> None:
        self._config, self._folder = config, run_directory / FOLDER
        self._manifest = data.read_manifest(config.data.path)
        self._vocabulary = self._manifest.vocabulary
        self._prompts = held_out_prompts(config, self._manifest)
        if jax.process_index() == 0:
            for note in load_codecs(config.world, self._manifest)[1]:
                say(f"note: samples: {note}")
        self._new = True  # what does not change from time to time is shown the first time

    def __call__(self, params: Any, step: int) -> Shown:
        results = self._answers(params)
        if jax.process_index() != 0:
            return {}
        with alone():  # its codecs are not for the others to wait for
            return self._write(step, results)

    def _answers(self, params: Any) -> list[Result]:
        """By all processes together: each knows every token, and so does the same."""
        requests = [self._request(number, prompt) for number, prompt in enumerate(self._prompts)]
        mesh = decoding_mesh(jax.tree.leaves(params)[0].sharding.mesh)
        model = _Model(params, self._config.model, self._vocabulary)
        return Engine(model, max_batch=len(requests), mesh=mesh).generate(requests)

    def _write(self, step: int, results: Sequence[Result]) -> Shown:
        codecs, _ = load_codecs(self._config.world, self._manifest)
        folder = self._folder / f"{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        decoder, records, shown = codecs.text_codec or _Pieces(), [], Shown()
        for prompt, result in zip(self._prompts, results, strict=True):
            sides = {"in": prompt.tokens[1:], "wanted": prompt.answer, "out": result.tokens.tolist()}
            parts = {side: read_answer(ids, self._vocabulary, decoder).parts for side, ids in sides.items()}
            written = {side: write_parts(folder, codecs, part, f"{prompt.task}_{side}") for side, part in parts.items()}
            shown |= _shown(folder, f"samples/{prompt.task}", written["out"])
            if self._new:
                shown |= _shown(folder, f"samples/{prompt.task}/given", written["in"])
                shown |= _shown(folder, f"samples/{prompt.task}/held_out", written["wanted"])
            records.append(
                {
                    "task": prompt.task,
                    "title": prompt.task.replace("_", " "),
                    "input": written["in"],
                    "output": written["out"],
                    "wanted": written["wanted"],
                    **timeline(codecs, prompt.tokens, result),
                }
            )
        store.write_json(folder / "samples.json", records)
        self._new = False
        return shown

    def _request(self, number: int, prompt: Prompt) -> Request:
        # Room for twice the held-out answer: a model that has not learnt to stop does not hold up its training.
        room = 2 * len(prompt.answer)
        options = dataclasses.replace(task_options(prompt.task), max_text=room, max_speech=room)
        return make_request(prompt.task, prompt.tokens, self._vocabulary, options, number)


def held_out_prompts(config: RunConfig, manifest: Manifest, split: str = "test") -> list[Prompt]:
    """The first example with an answer of every task of the held-out split, in the order of `TASKS`.

    Raises:
      UserError: there is none.
    """
    found: dict[str, Prompt] = {}
    for part in manifest.components(split, tuple(config.data.mixture)).values():
        missing = set(part.tasks) - set(found)
        if not missing:
            continue
        for record in data.read_records(pathlib.Path(config.data.path) / part.records, manifest.vocabulary):
            tokens, answer = _cut(record.tokens.tolist(), record.response_length, manifest.vocabulary)
            if record.task in missing and answer and len(tokens) > 1:
                found[record.task] = Prompt(record.task, tokens, answer)
                missing.discard(record.task)
                if not missing:
                    break
    if not found:
        raise UserError(f"{config.data.path}: no example of {split} has an answer, so there is nothing to ask for")
    return [found[task] for task in TASKS if task in found]


def _cut(tokens: list[int], response_length: int, vocabulary: JointVocabulary) -> tuple[list[int], list[int]]:
    """Prompt and answer: the last `response_length` tokens that are not eos (SPEC 4.1)."""
    end = len(tokens)
    while end and tokens[end - 1] == vocabulary.eos:
        end -= 1
    return tokens[: end - response_length], tokens[end - response_length : end]


def load_codecs(world: str, manifest: Manifest) -> tuple[Codecs, list[str]]:
    """The codecs of a world or of a folder that fit the data's tokens; and a line about each that does not."""
    vocabulary, notes = manifest.vocabulary, []
    found: dict[str, Any] = {}
    for name, kind in (("text", TextCodec), ("image", ImageCodec), ("speech", SpeechCodec)):
        found[name] = None
        if not len(getattr(vocabulary, name)):
            continue
        try:
            codec: Any = kind.load(world)
            made_with = manifest.codecs.get(name, codec.fingerprint)
            if made_with != codec.fingerprint:
                raise UserError(f"the data was made with {made_with}, {world} has {codec.fingerprint}")
            if name == "text" and vocabulary.text_offset and codec.num_pieces != len(vocabulary.text):
                raise UserError(f"the data has {len(vocabulary.text)} pieces, {world} has {codec.num_pieces}")
            if name != "text" and codec.num_codes != len(getattr(vocabulary, name)):
                raise UserError(f"the data has {len(getattr(vocabulary, name))} codes, {world} has {codec.num_codes}")
            found[name] = codec
        except UserError as error:
            notes.append(f"no {name} codec, numbers are shown instead: {error}")
    return Codecs(vocabulary, found["text"], found["image"], found["speech"]), notes


def decoding_mesh(mesh: Mesh) -> Mesh:
    """The same devices for decoding, which splits no sequence: those along `context` split the parameters further."""
    size = mesh.shape
    shape = (size["replica"], size["fsdp"] * size["context"], 1, size["tensor"])
    return mesh if size["context"] == 1 else Mesh(mesh.devices.reshape(shape), mesh.axis_names)


class _Pieces:
    """In place of a text codec: the numbers of the pieces."""

    def decode(self, pieces: list[int]) -> str:
        return "pieces " + " ".join(map(str, pieces))


def _shown(folder: pathlib.Path, name: str, segments: Sequence[Mapping[str, Any]]) -> Shown:
    """What was written, read again, by the kind of each piece."""
    shown, counts = Shown(), dict[str, int]()
    for segment in segments:
        kind = segment["kind"]
        counts[kind] = counts.get(kind, 0) + 1
        key = f"{name}/{kind}" + (f"_{counts[kind]}" if counts[kind] > 1 else "")
        if kind == "text":
            shown[key] = segment["text"]
        elif kind == "image":
            with PIL.Image.open(folder / segment["file"]) as image:
                shown[key] = image.convert("RGB")
        elif segment["seconds"]:
            shown[key] = soundfile.read(folder / segment["file"], dtype="float32")
    return shown
