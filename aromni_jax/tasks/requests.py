"""What each task may emit: from a task and a prompt to a request for the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from aromni_jax.decoding import Guidance, Policy, Request, State
from aromni_jax.errors import UserError
from aromni_jax.tasks.parts import Image, Speech, Text
from aromni_jax.tasks.prompts import PromptBuilder
from aromni_jax.tasks.templates import TASK_KINDS
from aromni_jax.vocabulary import JointVocabulary, task_id

_STATE_OF_KIND = {Text: State.TEXT, Speech: State.SPEECH, Image: State.IMAGE}
_CHAT_STATES = frozenset({State.TEXT, State.TRANSCRIPT, State.SPEECH, State.IMAGE})
_CLOSE = 4  # opening marker, closing marker, eos, and one to spare: an answer that just fits is not cut off


@dataclasses.dataclass(frozen=True)
class Options:
    """How to decode a task.

    Attributes:
      policies: per state; states left out are greedy.
      guidance: of pictures; None = off.
      negative: with guidance, what a text_to_image picture is to be unlike: text, told in the words of the prompt.
      seed: of the first request; request n draws with seed + n.
      max_new_tokens: None = room for `max_text` pieces, `max_speech` codes or one picture, whatever the task makes.
      max_text, max_speech: text pieces and speech codes of one answer (one more may fit).
      history: what to do when a dialog has become so long that it leaves no room for the answer (`plan_turn` says how
        much that is): "refuse", or "drop_oldest" for its oldest turns to be left out, which the reply reports.
    """

    policies: Mapping[State, Policy] = dataclasses.field(default_factory=dict)
    guidance: Guidance | None = None
    negative: str | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    max_text: int = 128
    max_speech: int = 400
    history: Literal["refuse", "drop_oldest"] = "refuse"


# Pictures vary from draw to draw and stay legible (measured on the numbers world); the rest is greedy (SPEC 6.6).
_DRAWING = Policy(temperature=0.5)


def task_options(task: str) -> Options:
    """What `Assistant` does when the caller says nothing: greedy but for pictures, without guidance."""
    task_id(task)
    return Options({State.IMAGE: _DRAWING})


def tell_negative(task: str, options: Options, prompts: PromptBuilder, instruction: str | None) -> Options:
    """`options` with their negative prompt as tokens of the guidance: a prompt of the task like the positive one.

    `UserError` without guidance, or if the task is not text_to_image.
    """
    if options.negative is None:
        return options
    if task != "text_to_image":
        raise UserError(f"{task}: takes no negative prompt; only text_to_image does")
    if options.guidance is None:
        raise UserError("a negative prompt needs guidance: give its scales, text and image (--guidance-text)")
    tokens = prompts.prompt(task, [Text(options.negative)], instruction)
    return dataclasses.replace(options, guidance=dataclasses.replace(options.guidance, negative=tokens), negative=None)


def output_state(task: str) -> State:
    """The state a task's answer is made in; TEXT for a chat."""
    return State.TEXT if task == "chat" else _STATE_OF_KIND[TASK_KINDS[task][1]]


def make_request(
    task: str, prompt: Sequence[int], vocabulary: JointVocabulary, options: Options, number: int = 0
) -> Request:
    """The request for one prompt of `task`; `number` sets its id and its seed.

    A task with one output gets exactly that: speech must open with boa, a picture with boi, and after it only the
    end is open. A chat answers in the shape of SPEC 2.4, its transcript first.
    A negative prompt is in the guidance (`tell_negative`). `UserError` for an unknown task.
    """
    task_id(task)
    room = {
        State.TEXT: options.max_text + _CLOSE,
        State.SPEECH: options.max_speech + _CLOSE,
        State.IMAGE: vocabulary.image_tokens + _CLOSE,
    }
    state = output_state(task)
    limit = 2 * sum(room.values()) if task == "chat" else room[state]
    return Request(
        prompt_tokens=prompt,
        max_new_tokens=limit if options.max_new_tokens is None else options.max_new_tokens,
        allowed=_CHAT_STATES if task == "chat" else frozenset({state}),
        first=State.TRANSCRIPT if task == "chat" else state,
        max_spans=4 if task == "chat" else 1,
        policies=options.policies,
        guidance=options.guidance,
        seed=options.seed + number,
        id=str(number),
    )
