"""The numbers world as a data set: compose media, encode them once, and let every task use the same codes."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from aromni_jax.codecs import ImageCodec, SpeechCodec, TextCodec
from aromni_jax.data.manifest import NAME, Manifest, read_manifest, totals, write_component, write_manifest
from aromni_jax.data.record import Record
from aromni_jax.errors import UserError
from aromni_jax.tasks import Image, Part, PromptBuilder, Speech, Text
from aromni_jax.vocabulary import JointVocabulary
from aromni_jax.worlds.numbers import SAMPLE_RATE, NumbersWorld

# Share of pictures that are also shown without a prompt, so that guidance has an unconditional branch to lean on.
UNCONDITIONAL = 0.1
_ENCODE_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much to compose per split; each utterance and each picture serves every task that can use it."""

    utterances: int = 8_000
    pictures: int = 24_000
    dialogs: int = 4_000
    held_out_utterances: int = 400
    held_out_pictures: int = 400
    held_out_dialogs: int = 100


def prepare_numbers(
    folder: str | pathlib.Path,
    *,
    template: str = "brief",
    sequence_length: int = 256,
    amounts: Amounts = Amounts(),
    seed: int = 0,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Manifest:
    """Write records, packed rows and manifest.json of the numbers world under `folder`.

    The same request on a finished folder does nothing; an interrupted one starts over (files appear whole or not at
    all, the manifest last). Train and held-out parts share no string, recording or drawing.

    Args:
      template: of the prompts (`tasks.templates`).
      sequence_length: tokens of a packed row; dialogs that do not fit are left out and counted.

    Raises:
      UserError: a file cannot be written, a codec or the media are missing.
    """
    folder = pathlib.Path(folder)
    started = time.perf_counter()
    workshop = _Workshop(template, sequence_length)
    request = {
        "world": "numbers",
        "template": template,
        "sequence_length": sequence_length,
        "amounts": dataclasses.asdict(amounts),
        "seed": seed,
    }
    if (folder / NAME).is_file() and not force:
        done = read_manifest(folder)
        if (done.request, done.codecs, done.vocabulary) == (request, workshop.fingerprints, workshop.vocabulary):
            say(f"{folder}: prepared already ({totals(done.splits['train'])['examples']:,} examples)")
            return done
    counts = {
        "train": (amounts.utterances, amounts.pictures, amounts.dialogs),
        "test": (amounts.held_out_utterances, amounts.held_out_pictures, amounts.held_out_dialogs),
    }
    splits = {}
    for number, (split, wanted) in enumerate(counts.items()):
        records = workshop.records(split, *wanted, np.random.default_rng([seed, number]))
        splits[split] = {
            task: write_component(
                folder,
                f"{split}/{task}",
                part,
                sequence_length=sequence_length,
                vocabulary=workshop.vocabulary,
                seed=seed,
            )
            for task, part in records.items()
        }
    manifest = Manifest(
        vocabulary=workshop.vocabulary,
        codecs=workshop.fingerprints,
        sequence_length=sequence_length,
        request=request,
        splits=splits,
        statistics={**workshop.statistics, "seconds": time.perf_counter() - started},
    )
    write_manifest(folder, manifest)
    train = totals(splits["train"])
    say(
        f"{folder}: {train['examples']:,} examples, {train['tokens']:,} tokens in {train['row_count']:,} rows, "
        f"from {workshop.statistics['hours_of_speech']:.1f} h of speech and {amounts.pictures:,} pictures, "
        f"in {manifest.statistics['seconds']:.0f} s"
    )
    return manifest


def world_vocabulary(text: TextCodec, image: ImageCodec, speech: SpeechCodec) -> JointVocabulary:
    """The compact vocabulary of three codecs."""
    return JointVocabulary.compact(
        text_pieces=text.num_pieces,
        image_codes=image.num_codes,
        image_tokens=image.tokens_per_image,
        speech_codes=speech.num_codes,
    )


class _Workshop:
    """World, codecs and prompts, and what they make."""

    def __init__(self, template: str, sequence_length: int) -> None:
        self.world = NumbersWorld.load()
        self.text, self.image, self.speech = (codec.load("numbers") for codec in (TextCodec, ImageCodec, SpeechCodec))
        self.vocabulary = world_vocabulary(self.text, self.image, self.speech)
        self.prompts = PromptBuilder(self.vocabulary, self.text, template)
        self.fingerprints = {name: getattr(self, name).fingerprint for name in ("text", "image", "speech")}
        self.statistics: dict[str, Any] = {"hours_of_speech": 0.0, "dialogs_too_long": 0}
        self._sequence_length = sequence_length

    def records(
        self, split: str, utterances: int, pictures: int, dialogs: int, rng: np.random.Generator
    ) -> dict[str, list[Record]]:
        """Task -> records of one split."""
        strings = self.world.strings(split)
        spoken = [strings[i] for i in rng.integers(len(strings), size=utterances)]
        drawn = [strings[i] for i in rng.integers(len(strings), size=pictures)]
        heard, seen = self._hear(spoken, split, rng), self._look(drawn, split, rng)
        made: dict[str, list[Record]] = {}

        def add(task: str, tokens: Sequence[int], response_length: int) -> None:
            part = made.setdefault(task, [])
            part.append(Record(np.asarray(tokens, np.uint16), task, response_length, f"{split}/{task}/{len(part)}"))

        for string, utterance in zip(spoken, heard, strict=True):
            text = Text(self.world.text(string))
            add("speech_to_text", *self.prompts.example("speech_to_text", [utterance], [text]))
            add("text_to_speech", *self.prompts.example("text_to_speech", [text], [utterance]))
        for string, picture in zip(drawn, seen, strict=True):
            text = Text(self.world.text(string))
            add("image_caption", *self.prompts.example("image_caption", [picture], [text]))
            add("text_to_image", *self.prompts.example("text_to_image", [text], [picture]))
            if rng.random() < UNCONDITIONAL:
                answer = self.prompts.answer("text_to_image", [picture])
                add("text_to_image", [self.vocabulary.bos, *answer], len(answer) - 1)
        sounds, sights = _by_string(spoken, heard), _by_string(drawn, seen)
        for string, utterance in zip(spoken, heard, strict=True):
            if string in sights:
                picture = _one(sights[string], rng)
                add("speech_to_image", *self.prompts.example("speech_to_image", [utterance], [picture]))
                add("image_to_speech", *self.prompts.example("image_to_speech", [picture], [utterance]))
        both = sorted(sounds.keys() & sights.keys())
        for _ in range(dialogs):
            first, second = (self._turn(both[rng.integers(len(both))], sounds, sights, rng) for _ in range(2))
            for turns in (first[:1], second[1:], first[:1] + second[1:]):
                tokens, response_length = self.prompts.chat_example(turns)
                if len(tokens) > self._sequence_length:
                    self.statistics["dialogs_too_long"] += 1
                else:
                    add("chat", tokens, response_length)
        return made

    def _turn(
        self, string: str, sounds: dict[str, list[Part]], sights: dict[str, list[Part]], rng: np.random.Generator
    ) -> list[tuple[list[Part], list[Part]]]:
        """Two ways to talk about a number: it is said and comes back as text, speech and picture; or shown and said."""
        text = Text(self.world.text(string))
        said = ([_one(sounds[string], rng)], [text, text, _one(sounds[string], rng), _one(sights[string], rng)])
        shown = ([_one(sights[string], rng)], [text, text, _one(sounds[string], rng)])
        return [said, shown]

    def _hear(self, strings: Sequence[str], split: str, rng: np.random.Generator) -> list[Speech]:
        spoken: list[Speech] = []
        for batch in _batches(strings, f"{split}: speech"):
            waves = [self.world.utterance(string, rng, split=split) for string in batch]
            lengths = [len(wave) for wave in waves]
            padded_bn = np.zeros((len(waves), max(lengths)), np.float32)
            for row, wave in zip(padded_bn, waves, strict=True):
                row[: len(wave)] = wave
            spoken += [Speech(codes) for codes in self.speech.encode(padded_bn, lengths=lengths)]
            self.statistics["hours_of_speech"] += sum(lengths) / SAMPLE_RATE / 3600
        return spoken

    def _look(self, strings: Sequence[str], split: str, rng: np.random.Generator) -> list[Image]:
        seen: list[Image] = []
        for batch in _batches(strings, f"{split}: pictures"):
            pictures = np.stack([self.world.picture(string, rng, split=split) for string in batch])
            seen += [Image(codes) for codes in self.image.encode(pictures)]
        return seen


def _batches(strings: Sequence[str], what: str) -> Any:
    """Slices of `strings`, with a progress bar in a terminal."""
    if not strings:
        raise UserError(f"{what}: asked for none; give at least one")
    starts = range(0, len(strings), _ENCODE_BATCH)
    return (strings[start : start + _ENCODE_BATCH] for start in tqdm(starts, desc=what, disable=None, unit="batch"))


def _by_string(strings: Sequence[str], parts: Sequence[Part]) -> dict[str, list[Part]]:
    grouped: dict[str, list[Part]] = {}
    for string, part in zip(strings, parts, strict=True):
        grouped.setdefault(string, []).append(part)
    return grouped


def _one(parts: list[Part], rng: np.random.Generator) -> Part:
    return parts[rng.integers(len(parts))]
