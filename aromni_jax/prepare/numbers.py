"""The numbers world as a data set: media composed from recordings and drawings, made into examples of every task.

An example pairs any utterance of its string with any picture of it. The train and test splits share no string,
recording or drawing.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
from aromni_jax.worlds.numbers import NumbersWorld
from aromni_jax.worlds.numbers.world import MEDIA

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
_RECIPE = 1  # raise it when the same request gives other records
_EXAMPLES_PER_UTTERANCE = 6
_EXAMPLES_PER_PICTURE = 2
_CHAT_TRIES = 8


def prepare_numbers(
    out_dir: str | os.PathLike[str],
    *,
    examples: int = 80_000,
    held_out: int = 420,
    seed: int = 0,
    sequence_length: int = 256,
    template: str = "brief",
    mixture: Mapping[str, float] = MIXTURE,
    codecs: Codecs | None = None,
    force: bool = False,
    progress: bool = True,
) -> Manifest:
    """Make the data set, or find it made: one component per task in the splits "train" and "test".

    Nothing stands in `out_dir` before all of it is there; an interrupted preparation starts again.

    Args:
      examples: of the train split, shared out by `mixture`.
      held_out: of the test split, the same number for each task.
      sequence_length: tokens of a packed row, and the longest example.
      mixture: task -> share of the examples; tasks that are not named are left out.
      codecs: None = those shipped with the world.
      force: replace a data set that was made otherwise.

    Raises:
      UserError: bad arguments, something else in `out_dir`, a full disk, broken media.
    """
    out_dir = pathlib.Path(out_dir)
    mixture = _checked_mixture(mixture)
    if min(examples, held_out) < len(mixture):
        raise UserError(f"{examples} and {held_out} examples are too few for {len(mixture)} tasks")
    codecs = codecs or Codecs.load("numbers")
    request = {
        "world": "numbers",
        "recipe": _RECIPE,
        "media": hashlib.sha256((MEDIA / "manifest.json").read_bytes()).hexdigest()[:16],
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
    world = NumbersWorld.load()
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
            raise UserError(f"mixture: unknown task {task!r}; the numbers world has {', '.join(MIXTURE)}")
        if not share >= 0:
            raise UserError(f"mixture: the share of {task} is {share}; it must be 0 or more")
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
    """Training examples of every task from encoded media; strings take turns."""

    world: NumbersWorld
    media: EncodedMedia
    builder: PromptBuilder
    longest: int
    rng: np.random.Generator

    def record(self, task: str, number: int, split: str) -> Record:
        """The example of that number; its id names split, task, number and string."""
        which = number % len(self.media.strings)
        string = self.media.strings[which]
        if task == "chat":
            tokens, response_length = self._chat(which)
        elif task == "text_to_image" and self.rng.random() < UNCONDITIONAL:
            answer = self.builder.answer(task, [self.media.picture(which, self.rng)])
            tokens, response_length = [self.builder.vocabulary.bos, *answer], len(answer) - 1
        else:
            given, wanted = TASK_KINDS[task]
            parts = self._parts(which)
            tokens, response_length = self.builder.example(task, [parts[given]], [parts[wanted]])
        name = f"{split}/{task}/{number}/{string}"
        return Record.checked(tokens, task, response_length, name, self.builder.vocabulary, name)

    def _parts(self, which: int) -> dict[type, Part]:
        """The string as text, as some utterance and as some picture."""
        text = Text(self.world.text(self.media.strings[which]))
        return {Text: text, Speech: self.media.utterance(which, self.rng), Image: self.media.picture(which, self.rng)}

    def _chat(self, which: int) -> tuple[list[int], int]:
        """A dialog of one turn or two.

        A number is said, and comes back as echo, text, speech and picture; one is shown, and comes back as text and
        speech. Media are drawn again until the dialog fits a row; if they do not in a few tries, a turn has to do.
        """
        turns: list[tuple[Sequence[Part], Sequence[Part]]] = []
        wanted = slice(*((0, 1), (1, 2), (0, 2), (0, 2))[self.rng.integers(4)])
        for _ in range(_CHAT_TRIES):
            other = int(self.rng.integers(len(self.media.strings)))
            said, answered, shown, told = (self._parts(string) for string in (which, which, other, other))
            turns = [
                ([said[Speech]], [said[Text], answered[Text], answered[Speech], answered[Image]]),
                ([shown[Image]], [shown[Text], told[Text], told[Speech]]),
            ]
            example = self.builder.chat_example(turns[wanted])
            if len(example[0]) <= self.longest:
                return example
        return self.builder.chat_example(turns[:1])
