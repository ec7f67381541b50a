"""Training examples from codes and texts, from dialogs, and from streams that are tokens already."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from aromni_jax.data.record import Record
from aromni_jax.data.weights import SEGMENT, Role, token_roles
from aromni_jax.errors import UserError
from aromni_jax.prepare.items import SPLITS, Codes, Dialog, Item, Reject, Stream, Turn, Unusable
from aromni_jax.prepare.world import UNCONDITIONAL
from aromni_jax.tasks.parts import Image, Part, Speech, Text
from aromni_jax.tasks.prompts import PromptBuilder, TextPieces
from aromni_jax.tasks.templates import TASK_KINDS
from aromni_jax.vocabulary import JointVocabulary

# What is made of an item that has both kinds; of a text alone, plain text.
_PAIRED = ("image_caption", "text_to_image", "speech_to_text", "text_to_speech", "speech_to_image", "image_to_speech")
TASKS_MADE = (*_PAIRED, "text_to_text")
_LONGEST_NAME = 4096  # bytes of an id; a record takes less than 2**16


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How examples are made.

    Attributes:
      template: name of the prompt layouts.
      tasks: those of `TASKS_MADE` to make, where the item has what they take.
      sequence_length: tokens of a row, and of the longest example.
      held_out_every: one in so many items goes to the test split, where the source has none; 0 = no item.
      seed: of which ones.
    """

    template: str
    tasks: tuple[str, ...]
    sequence_length: int
    held_out_every: int
    seed: int


Made = tuple[str, Record] | Reject  # (split, example), or why there is none


class ExampleBuilder:
    """Makes examples of one recipe.

    Args:
      text: None for streams of tokens, which take none.

    Attributes:
      hold_first: whether the next item goes to the test split whatever its name (if the recipe holds any out): that of
        a small data set would be empty, and training evaluates on it.
    """

    def __init__(self, recipe: Recipe, vocabulary: JointVocabulary, text: TextPieces | None = None) -> None:
        self.recipe = recipe
        self.hold_first = False
        self._vocabulary = vocabulary
        self._text = text
        self._prompts = PromptBuilder(vocabulary, text, recipe.template) if text else None

    def of_item(self, item: Item, media: Mapping[type, Part]) -> Iterator[Made]:
        """Every task of the recipe that takes what the item has; `media` are its codes by kind."""
        split = self._split(item.split, item.record)
        if not media:
            if "text_to_text" in self.recipe.tasks:
                for number, text in enumerate(item.texts):
                    try:
                        yield from [(split, record) for record in self._plain(item, number, text)]
                    except UserError as error:
                        yield Reject.of(item.file, item.record, error)
            return
        for task in self.recipe.tasks:
            given, wanted = TASK_KINDS[task]
            if task not in _PAIRED or not {given, wanted} <= {*media, Text}:
                continue
            texts = item.texts if Text in (given, wanted) else ("",)
            for number, text in enumerate(texts):
                parts = {**media, Text: Text(text)}
                try:
                    yield split, self._pair(item, task, number, parts[given], parts[wanted])
                except UserError as error:
                    yield Reject.of(item.file, item.record, error)

    def of_dialog(self, dialog: Dialog) -> Made:
        """All turns as one example."""
        prompts, tokens, answer = self._prompts, list[int](), list[int]()
        assert prompts is not None
        try:
            for turn in dialog.turns:
                answer = prompts.answer("chat", [Text(turn.transcript), Text(turn.reply), *self._parts(turn, True)])
                tokens = prompts.chat_history(tokens, self._parts(turn, False), answer, turn.said)
            name = _name(dialog, "chat", 0)
            record = self._fitting([self._vocabulary.bos, *tokens], "chat", len(answer), name)
            return self._split(dialog.split, dialog.record), record
        except UserError as error:
            return Reject.of(dialog.file, dialog.record, error)

    def of_stream(self, stream: Stream) -> Made:
        """A stream of ids."""
        try:
            length = stream.response_length
            if length is None:
                length = self._answer_length(stream)
            record = self._fitting(stream.tokens, stream.task, length, stream.id)
            if stream.labels is not None:
                self._check_labels(stream.labels, record)
            return self._split(stream.split, stream.record), record
        except UserError as error:
            return Reject.of(stream.file, stream.record, error)

    def codes(self, kind: type[Image] | type[Speech], given: Codes) -> Part:
        """Codes that came with the data; `Unusable` if the vocabulary has none such."""
        v, codes = self._vocabulary, given.codes
        name = kind.__name__.lower()
        if not len(codes):
            raise Unusable("no codes", f"of {name}")
        if kind is Image and len(codes) != v.image_tokens:
            raise Unusable(
                "bad codes", f"an image of {len(codes)} codes, those of this vocabulary have {v.image_tokens}"
            )
        known = len(v.image if kind is Image else v.speech)
        if int(codes.max()) >= known:
            raise Unusable("bad codes", f"{name} code {int(codes.max())} is outside 0..{known - 1}")
        return kind(codes)

    def _pair(self, item: Item, task: str, number: int, given: Part, wanted: Part) -> Record:
        prompts = self._prompts
        assert prompts is not None
        name = _name(item, task, number)
        if task == "text_to_image" and _hash(name) / 2**64 < UNCONDITIONAL:
            answer = prompts.answer(task, [wanted])
            tokens, length = [self._vocabulary.bos, *answer], len(answer) - 1
        else:
            tokens, length = prompts.example(task, [given], [wanted])
        return self._fitting(tokens, task, length, name)

    def _plain(self, item: Item, number: int, text: str) -> Iterator[Record]:
        """A text of any length as records that fit a row: bos before the first, eos behind the last."""
        assert self._text is not None
        v, longest = self._vocabulary, self.recipe.sequence_length
        ids = [v.bos, *v.text_ids(self._text.encode(text)).tolist(), v.eos]
        for piece, start in enumerate(range(0, len(ids), longest)):
            name = _name(item, "text_to_text", number) + (f"+{piece}" if piece else "")
            yield self._fitting(ids[start : start + longest], "text_to_text", 0, name)

    def _parts(self, turn: Turn, answer: bool) -> list[Part]:
        speech, images = (turn.answer_speech, turn.answer_images) if answer else (turn.speech, turn.images)
        return [*(self.codes(Speech, codes) for codes in speech), *(self.codes(Image, codes) for codes in images)]

    def _fitting(self, tokens: Sequence[int] | np.ndarray, task: str, length: int, name: str) -> Record:
        if len(tokens) > self.recipe.sequence_length:
            detail = f"{len(tokens)} tokens of {task}, a row takes {self.recipe.sequence_length}"
            raise Unusable("too long", detail)
        name = name.encode(errors="replace")[:_LONGEST_NAME].decode(errors="ignore")  # it may be no text
        return Record.checked(tokens, task, length, name, self._vocabulary, "tokens")

    def _answer_length(self, stream: Stream) -> int:
        """Tokens of the last run of labels, eos not counted."""
        assert stream.labels is not None
        labelled = np.flatnonzero(stream.labels)
        if not len(labelled):
            raise Unusable("no label", "no token of it carries loss")
        last = int(labelled[-1])
        before = np.flatnonzero(~stream.labels[:last])
        first = int(before[-1]) + 1 if len(before) else 0
        return int((np.asarray(stream.tokens)[first : last + 1] != self._vocabulary.eos).sum())

    def _check_labels(self, labels: np.ndarray, record: Record) -> None:
        """`Unusable` unless training puts loss on the tokens that the labels say."""
        roles = token_roles(record.tokens, record.response_length, self._vocabulary) & ~np.uint8(SEGMENT)
        wrong = np.flatnonzero(np.isin(roles, (Role.RESPONSE, Role.PLAIN)) != labels)
        wrong = wrong[wrong > 0]  # the first token is never predicted
        if len(wrong):
            raise Unusable("labels are not the answers", f"they differ at position {wrong[0]}")

    def _split(self, told: str, record: str) -> str:
        if told:
            return told
        every = self.recipe.held_out_every
        first, self.hold_first = self.hold_first, False
        if first and every:
            return "test"
        return SPLITS[every > 0 and _hash(f"{self.recipe.seed} {record}") % every == 0]


def _name(item: Item | Dialog, task: str, number: int) -> str:
    """An id, also of a file whose name is no text."""
    record = item.record.encode(errors="replace").decode()
    return f"{task}/{record}" + (f"#{number}" if number else "")


def _hash(name: str) -> int:
    """A number of 64 bits that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big")
