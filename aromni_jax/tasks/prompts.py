"""From parts (text, speech, images) to token ids: prompts, answers and training examples (SPEC 2.3, 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aromni_jax.errors import UserError
from aromni_jax.tasks.parts import Image, Part, Speech, Text
from aromni_jax.tasks.templates import TASK_KINDS, Slot, Template, get_template
from aromni_jax.vocabulary import JointVocabulary, task_id


class TextPieces(Protocol):
    """What the builder needs of a text codec."""

    def encode(self, text: str) -> list[int]: ...


class PromptBuilder:
    """Builds token sequences for one vocabulary, one text codec and one template.

    All methods return plain lists of joint-vocabulary ids. `inputs`, `answer` and `user_parts` are sequences
    of `Text`, `Speech` and `Image`. A wrong task, a missing or a superfluous part raises `UserError`.
    """

    def __init__(self, vocabulary: JointVocabulary, text_codec: TextPieces, template: Template | str) -> None:
        self.vocabulary = vocabulary
        self.template = get_template(template) if isinstance(template, str) else template
        self._text_codec = text_codec

    def prompt(self, task: str, inputs: Sequence[Part], instruction: str | None = None) -> list[int]:
        """`[bos]` + layout of the task, up to where the model's answer begins."""
        return [self.vocabulary.bos, *self._turn(task, inputs, instruction)]

    def answer(self, task: str, parts: Sequence[Part]) -> list[int]:
        """The expected completion, closed by eos (a chat: `[ins] transcript [res] text AUD IMG [eom]`).

        A chat answer's first two parts are the transcript and the text of the reply, both `Text`.
        """
        task_id(task)
        v = self.vocabulary
        if task != "chat":
            self._expect(task, "answer", parts, TASK_KINDS[task][1])
            return [*self._part_ids(parts[0]), v.eos]
        if len(parts) < 2 or not all(isinstance(part, Text) for part in parts[:2]):
            raise UserError("chat: an answer starts with two Text parts, the transcript and the reply")
        transcript, reply, *media = parts
        if any(isinstance(part, Text) for part in media):
            raise UserError("chat: an answer has exactly two Text parts, the transcript and the reply")
        ids = [v.ins, *self._part_ids(transcript), v.res, *self._part_ids(reply)]
        return [*ids, *self._of_kind(media, Speech), *self._of_kind(media, Image), v.eom]

    def example(
        self, task: str, inputs: Sequence[Part], answer: Sequence[Part], instruction: str | None = None
    ) -> tuple[list[int], int]:
        """A training sequence and its response length.

        The response length counts the answer tokens other than eos, so that the tail rule of SPEC 4.1 (the
        last k tokens that are not eos) covers the answer exactly.
        """
        answer_ids = self.answer(task, answer)
        return self.prompt(task, inputs, instruction) + answer_ids, self._response_length(answer_ids)

    def chat_prompt(
        self, history: Sequence[int], user_parts: Sequence[Part], append_text: str | None = None
    ) -> list[int]:
        """`[bos]` + history + this turn. `history` holds earlier turns as made by `chat_history`.

        As in SPEC 6.9, bos and eos at the ends of the history are dropped and it is closed with eom.
        `append_text` None takes the template's own; "" leaves it out. Any number of parts, at least one.
        """
        v = self.vocabulary
        past = _strip(list(history), {v.bos, v.eos})
        if past and past[-1] != v.eom:
            past.append(v.eom)
        return [v.bos, *past, *self._turn("chat", user_parts, append_text)]

    def chat_history(
        self,
        history: Sequence[int],
        user_parts: Sequence[Part],
        output: Sequence[int],
        append_text: str | None = None,
    ) -> list[int]:
        """`history` extended by one finished turn: the user's tokens and what the model answered to them."""
        prompt = self.chat_prompt(history, user_parts, append_text)
        return [*prompt[1:], *output]

    def without_oldest(self, history: Sequence[int]) -> list[int]:
        """`history` less its first turn, which ends with the eom of the model's answer."""
        ends = [at for at, token in enumerate(history) if token == self.vocabulary.eom]
        return list(history[ends[0] + 1 :]) if ends else []

    def chat_example(
        self, turns: Sequence[tuple[Sequence[Part], Sequence[Part]]], append_text: str | None = None
    ) -> tuple[list[int], int]:
        """A dialog of (user parts, answer parts) as one sequence, and the length of its last answer."""
        history: list[int] = []
        answer_ids: list[int] = []
        for user_parts, answer_parts in turns:
            answer_ids = self.answer("chat", answer_parts)
            history = self.chat_history(history, user_parts, answer_ids, append_text)
        return [self.vocabulary.bos, *history], self._response_length(answer_ids)

    def _turn(self, task: str, inputs: Sequence[Part], instruction: str | None) -> list[int]:
        task_id(task)
        if task != "chat":
            self._expect(task, "input", inputs, TASK_KINDS[task][0])
        elif not inputs:
            raise UserError("chat: a turn needs at least one part: text, speech or an image")
        if instruction is None:
            instruction = self.template.instructions[task]
        ids: list[int] = []
        for fragment in self.template.layouts[task]:
            if isinstance(fragment, str):
                ids += self._text(fragment)
            elif fragment is Slot.INSTRUCTION:
                ids += self._text(instruction)
            elif fragment is Slot.EOH:
                ids.append(self.vocabulary.eoh)
            else:
                kind = {Slot.TEXT: Text, Slot.SPEECH: Speech, Slot.IMAGE: Image}[fragment]
                ids += self._of_kind(inputs, kind)
        return ids

    def _of_kind(self, parts: Sequence[Part], kind: type) -> list[int]:
        return [token for part in parts if isinstance(part, kind) for token in self._part_ids(part)]

    def _part_ids(self, part: Part) -> list[int]:
        v = self.vocabulary
        if isinstance(part, Text):
            return self._text(part.text)
        if isinstance(part, Speech):
            return [v.boa, *_ids(v.speech_ids(part.codes)), v.eoa]
        if len(part) != v.image_tokens:
            raise UserError(f"image of {len(part)} codes, but this vocabulary has {v.image_tokens} per image")
        return [v.boi, *_ids(v.image_ids(part.codes)), v.eoi]

    def _text(self, text: str) -> list[int]:
        return _ids(self.vocabulary.text_ids(self._text_codec.encode(text))) if text else []

    def _response_length(self, answer_ids: Sequence[int]) -> int:
        return sum(token != self.vocabulary.eos for token in answer_ids)

    @staticmethod
    def _expect(task: str, what: str, parts: Sequence[Part], kind: type) -> None:
        if len(parts) != 1 or not isinstance(parts[0], kind):
            got = ", ".join(type(part).__name__ for part in parts) or "nothing"
            raise UserError(f"{task}: the {what} must be one {kind.__name__}, got {got}")


def _ids(array) -> list[int]:
    return [int(token) for token in array]


def _strip(ids: list[int], drop: set[int]) -> list[int]:
    start, stop = 0, len(ids)
    while start < stop and ids[start] in drop:
        start += 1
    while stop > start and ids[stop - 1] in drop:
        stop -= 1
    return ids[start:stop]
