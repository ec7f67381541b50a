"""One turn of a dialog: its prompt, and what of the history has room in the model's context."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence

from aromni_jax.decoding import Done, Request
from aromni_jax.errors import UserError
from aromni_jax.tasks.answers import Dropped, Reply
from aromni_jax.tasks.parts import Part
from aromni_jax.tasks.prompts import PromptBuilder
from aromni_jax.tasks.requests import Options, make_request, tell_negative


@dataclasses.dataclass(frozen=True)
class Turn:
    """A turn that is ready to be decoded.

    Attributes:
      history: what is left of it.
      parts, append_text: what the user adds.
      request: of it all.
      dropped: from the history.
    """

    history: list[int]
    parts: Sequence[Part]
    append_text: str | None
    request: Request
    dropped: Dropped


def plan_turn(
    prompts: PromptBuilder,
    history: Sequence[int],
    parts: Sequence[Part],
    append_text: str | None,
    options: Options,
    *,
    context: int,
    number: int = 0,
) -> Turn:
    """The turn `number` of a batch, in a model of `context` positions.

    History, turn and what the answer may need must fit the context: `max_new_tokens`, or where that is not given half
    of the context at most. If they do not, `options.history` says what happens. A turn that has no history left is
    the engine's business: it cuts the answer to the room there is, and refuses a prompt that leaves none.

    Raises:
      UserError: there is no room, and the policy is to refuse; or the policy is unknown.
    """
    if options.history not in ("refuse", "drop_oldest"):
        raise UserError(f"history policy {options.history!r}: use 'refuse' or 'drop_oldest'")
    options = tell_negative("chat", options, prompts, append_text)
    kept, turns = list(history), 0
    while True:
        prompt = prompts.chat_prompt(kept, parts, append_text)
        request = make_request("chat", prompt, prompts.vocabulary, options, number)
        room = request.max_new_tokens if options.max_new_tokens is not None else context // 2
        room = min(room, request.max_new_tokens)
        if not kept or len(prompt) + room <= context:
            return Turn(kept, parts, append_text, request, Dropped(turns, len(history) - len(kept)))
        if options.history == "refuse":
            raise UserError(
                f"dialog {number}: {len(kept)} tokens of history, {len(prompt) - len(kept)} of this turn and room for "
                f"an answer of {room} are more than the context of {context}; begin a new dialog, allow less "
                "for answers (max_new_tokens), or let the oldest turns be dropped (history policy drop_oldest)"
            )
        kept, turns = prompts.without_oldest(kept), turns + 1


@dataclasses.dataclass(frozen=True)
class TurnDone(Done):
    """A turn of a dialog is finished: the last of its events.

    Attributes:
      reply: what came of it.
      history: token ids, what the next turn takes.
    """

    reply: Reply
    history: list[int]


@dataclasses.dataclass(frozen=True)
class Said:
    """What a user says in a turn: `parts` and `append_text`, after `history` (token ids, [] at first)."""

    history: Sequence[int]
    parts: Sequence[Part]
    append_text: str | None = None


Script = Generator[Said, tuple[Reply, list[int]], None]
"""A dialog from the user's side: yields what is said in each turn and is sent the reply and the history that the next
one takes. A turn that cannot be answered is thrown into it as a `UserError`; it may go on from the old history."""
