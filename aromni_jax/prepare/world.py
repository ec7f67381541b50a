"""A world as a data set: media composed from its recordings and drawings, made into examples of every task.

What is given is spoken by any voice of the world; what is answered, by the one that answers. Pictures show what an item
names (`World.naming`), so answers about a picture name it, and any picture of that goes with any utterance of the item.
The train and test splits share no item and no drawing, and nothing that is heard; see the worlds for what is answered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aromni_jax.data.manifest import Manifest, write_manifest, write_split
from aromni_jax.data.record import Record
from aromni_jax.errors import UserError
from aromni_jax.prepare.building import already_built, building
from aromni_jax.prepare.media import Codecs, EncodedMedia, progress_bar
from aromni_jax.tasks.parts import Image, Part, Speech, Text
from aromni_jax.tasks.prompts import PromptBuilder
from aromni_jax.tasks.templates import TASK_KINDS
from aromni_jax.worlds import World, load_world

# Share of each task in the examples. Pictures take the most practice and the fewest tokens; a dialog takes the most.
MIXTURE: Mapping[str, float] = {
    "speech_to_text": 2.0,
    "text_to_speech": 2.0,
    "image_caption": 3.0,
    "text_to_image": 3.0,
    "speech_to_image": 1.0,
    "image_to_speech": 1.0,
    "chat": 0.7,
}
# Share of text_to_image without a prompt: what guidance subtracts (the unconditional branch, SPEC 6.7).
UNCONDITIONAL = 0.1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a data set of a world is made of where nothing else is asked for.

    Attributes:
      examples: of the train split, shared out by the mixture.
      held_out: of the test split, the same number for each task.
      sequence_length: tokens of a packed row, and the longest example.
    """

    examples: int = 80_000
    held_out: int = 420
    sequence_length: int = 256


# Sentences are longer than numbers, and there are more of them.
SIZES: Mapping[str, Sizes] = {"numbers": Sizes(), "things": Sizes(160_000, 840, 512)}
_RECIPE = 1  # raise it when the same request gives other records
# Their examples take turns over what the items name, not over all that is said of it.
_OF_THINGS = ("image_caption", "text_to_image", "image_to_speech")
_EXAMPLES_PER_UTTERANCE = 6
_EXAMPLES_PER_PICTURE = 2
_CHAT_TRIES = 8


def prepare_world(
    world: World | str,
    out_dir: str | os.PathLike[str],
    *,
    examples: int | None = None,
    held_out: int | None = None,
    seed: int = 0,
    sequence_length: int | None = None,
    template: str = "brief",
    mixture: Mapping[str, float] = MIXTURE,
    codecs: Codecs | None = None,
    force: bool = False,
    progress: bool = True,
) -> Manifest:
    """Make the data set, or find it made: one component per task in the splits "train" and "test".

    Nothing stands in `out_dir` before all of it is there; an interrupted preparation starts again.

    Args:
      world: or the name of a shipped one.
      examples, held_out, sequence_length: see `Sizes`; None = the world's own.
      mixture: task -> share of the examples; tasks that are not named are left out.
      codecs: None = those shipped with the world.
      force: replace a data set that was made otherwise.

    Raises:
      UserError: no such world, bad arguments, something else in `out_dir`, a full disk, broken media.
    """
    out_dir = pathlib.Path(out_dir)
    mixture = _checked_mixture(mixture)
    world = load_world(world) if isinstance(world, str) else world
    sizes = SIZES.get(world.name, Sizes())
    examples = sizes.examples if examples is None else examples
    held_out = sizes.held_out if held_out is None else held_out
    sequence_length = sizes.sequence_length if sequence_length is None else sequence_length
    if min(examples, held_out) < len(mixture):
        raise UserError(f"{examples} and {held_out} examples are too few for {len(mixture)} tasks")
    if seed < 0:
        raise UserError(f"seed {seed}: give 0 or more")
    codecs = codecs or Codecs.load(world.name)
    request = {
        "world": world.name,
        "recipe": _RECIPE,
        "media": hashlib.sha256((world.media / "manifest.json").read_bytes()).hexdigest()[:16],
        "codecs": codecs.fingerprints,
        "examples": examples,
        "held_out": held_out,
        "seed": seed,
        "sequence_length": sequence_length,
        "template": template,
        "mixture": mixture,
    }
    made = already_built(out_dir, request, force)
    if made:
        return made
    started = time.perf_counter()
    builder = PromptBuilder(codecs.vocabulary, codecs.text, template)
    counts = {"train": _counts(mixture, examples), "test": _counts(dict.fromkeys(mixture, 1.0), held_out)}
    statistics: dict[str, Any] = {}
    splits, joint = {}, {}
    with building(out_dir) as folder:
        for number, (split, wanted) in enumerate(counts.items()):
            total = sum(wanted.values())
            rng = np.random.default_rng([seed, number])
            media = EncodedMedia.compose(
                world,
                codecs,
                split=split,
                utterances=total // _EXAMPLES_PER_UTTERANCE,
                pictures=total // _EXAMPLES_PER_PICTURE,
                rng=rng,
                progress=progress,
            )
            make = ExampleMaker(world, media, builder, sequence_length, rng)
            records: dict[str, list[Record]] = {task: [] for task in wanted}
            with progress_bar(total, f"{split} examples", progress) as bar:
                for task, count in wanted.items():
                    for i in range(count):
                        records[task].append(make.record(task, i, split))
                        bar.update()
            splits[split], joint[split] = write_split(
                folder,
                split,
                records,
                sequence_length=sequence_length,
                vocabulary=codecs.vocabulary,
                seed=seed,
            )
            statistics[split] = media.statistics(codecs.speech.tokens_per_second)
        manifest = Manifest(
            vocabulary=codecs.vocabulary,
            codecs=codecs.fingerprints,
            sequence_length=sequence_length,
            request=request,
            splits=splits,
            joint=joint,
            statistics=statistics | {"seconds": round(time.perf_counter() - started, 1)},
        )
        write_manifest(folder, manifest)
    return manifest


def _checked_mixture(mixture: Mapping[str, float]) -> dict[str, float]:
    for task, share in mixture.items():
        if task not in MIXTURE:
            raise UserError(f"mixture: unknown task {task!r}; a world has {', '.join(MIXTURE)}")
        if not 0 <= share < math.inf:
            raise UserError(f"mixture: the share of {task} is {share}; it must be a number of 0 or more")
    kept = {task: float(share) for task, share in mixture.items() if share > 0}
    if not kept:
        raise UserError("mixture: no task has a share above 0")
    return kept


def _counts(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Examples per task: proportional to the shares, `total` in all."""
    ends = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * total).astype(int)
    return dict(zip(shares, np.diff(ends, prepend=0).tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Training examples of every task from encoded media; items take turns."""

    world: World
    media: EncodedMedia
    builder: PromptBuilder
    longest: int
    rng: np.random.Generator

    def record(self, task: str, number: int, split: str) -> Record:
        """The example of that number; its id names split, task, number and item."""
        items = self.media.things if task in _OF_THINGS else self.media.strings
        string = items[number % len(items)]
        if task == "chat":
            tokens, response_length = self._chat(string)
        elif task == "text_to_image" and self.rng.random() < UNCONDITIONAL:
            answer = self.builder.answer(task, [self.media.answer_picture(string, self.rng)])
            tokens, response_length = [self.builder.vocabulary.bos, *answer], len(answer) - 1
        else:
            given, wanted = TASK_KINDS[task]
            parts = self._parts(string, answers_with_speech=given is not Speech, answers_with_picture=wanted is Image)
            tokens, response_length = self.builder.example(task, [parts[given]], [parts[wanted]])
        name = f"{split}/{task}/{number}/{string}"
        return Record.checked(tokens, task, response_length, name, self.builder.vocabulary, name)

    def _parts(self, string: str, *, answers_with_speech: bool, answers_with_picture: bool) -> dict[type, Part]:
        """The item as text, an utterance, and a picture of what it names.

        What answers is of the world's own voice and style, what is given of any.
        """
        media = self.media
        speech = (media.said if answers_with_speech else media.heard)(string, self.rng)
        picture = (media.answer_picture if answers_with_picture else media.seen)(self.world.naming(string), self.rng)
        return {Text: Text(self.world.text(string)), Speech: speech, Image: picture}

    def _chat(self, string: str) -> tuple[list[int], int]:
        """A dialog of one turn or two.

        Something is said, and comes back as echo; the answer names what it is about in text and speech, and draws it.
        Then something is shown, and comes back as text and speech. Media are drawn again until the dialog fits a row;
        if they do not in a few tries, a turn has to do.
        """
        turns: list[tuple[Sequence[Part], Sequence[Part]]] = []
        wanted = slice(*((0, 1), (1, 2), (0, 2), (0, 2))[self.rng.integers(4)])
        for _ in range(_CHAT_TRIES):
            other = self.media.things[int(self.rng.integers(len(self.media.things)))]
            heard = self._parts(string, answers_with_speech=False, answers_with_picture=False)
            answered = self._parts(self.world.naming(string), answers_with_speech=True, answers_with_picture=True)
            shown, told = (self._parts(other, answers_with_speech=True, answers_with_picture=False) for _ in range(2))
            turns = [
                ([heard[Speech]], [heard[Text], answered[Text], answered[Speech], answered[Image]]),
                ([shown[Image]], [shown[Text], told[Text], told[Speech]]),
            ]
            example = self.builder.chat_example(turns[wanted])
            if len(example[0]) <= self.longest:
                return example
        return self.builder.chat_example(turns[:1])
