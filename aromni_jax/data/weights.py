"""Per-token loss weights (SPEC 4.1, 4.2), in two steps.

`token_roles` says once, when a row is packed, what each token is (prompt, answer, ...); `weight_table` turns roles into
weights when a batch is made. So one prepared data set serves every weighting.
Everything is aligned with the LABEL: entry s belongs to the prediction of token s.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import numpy as np

from aromni_jax.config import LossConfig
from aromni_jax.vocabulary import TASKS, JointVocabulary, task_id


class Role(enum.IntEnum):
    """What a token is to the loss. The values are stored in row files: never renumber them."""

    NONE = 0  # never predicted: padding, first token of an example, ignored label
    PROMPT = 1  # before the answer
    RESPONSE = 2  # one of the last `response_length` predicted tokens that are not eos; an earlier answer of a dialog
    PLAIN = 3  # eos after the answer has begun; everything, where no answer is marked


SEGMENT = 4  # flag on top of a role: strictly between ins and res
ROLES = 2 * SEGMENT


def tail_mask(predicted: np.ndarray, tokens: np.ndarray, length: int, eos: int | None) -> np.ndarray:
    """Bool [n]: the last `length` positions that are predicted and not eos, fewer if there are not so many (SPEC 4.1).

    Args:
      predicted: bool [n], positions that carry loss (the first token of an example never does).
      tokens: integer [n].
      length: response length; 0 gives an empty mask.
      eos: never part of the tail, at the end or inside; None = no such exception.
    """
    eligible = predicted if eos is None else predicted & (tokens != eos)
    mask = np.zeros(len(tokens), bool)
    if length > 0:
        mask[np.flatnonzero(eligible)[-length:]] = True
    return mask


def inside_segments(tokens: np.ndarray, start: int, end: int) -> np.ndarray:
    """Bool [n]: positions strictly between paired markers (SPEC 4.2). Spans of nested starts may overlap."""
    mask = np.zeros(len(tokens), bool)
    for opened, closed in _paired(tokens, start, end):
        mask[opened + 1 : closed] = True
    return mask


def token_roles(tokens: np.ndarray, response_length: int, vocabulary: JointVocabulary) -> np.ndarray:
    """Roles of one whole example: uint8 [n], a `Role`, plus SEGMENT between ins and res.

    The tail of `response_length` tokens is the last answer; in a dialog (SPEC 2.4) each earlier one, ins to eom, is an
    answer as well.
    """
    predicted = np.ones(len(tokens), bool)
    predicted[0] = False
    answers = tail_mask(predicted, tokens, response_length, vocabulary.eos)
    roles = np.full(len(tokens), Role.PLAIN, np.uint8)
    if answers.any():
        roles[: np.argmax(answers)] = Role.PROMPT
        for opened, closed in _paired(tokens, vocabulary.ins, vocabulary.eom):
            answers[opened : closed + 1] = tokens[opened : closed + 1] != vocabulary.eos
    roles[answers] = Role.RESPONSE
    roles[inside_segments(tokens, vocabulary.ins, vocabulary.res)] += SEGMENT
    roles[~predicted] = Role.NONE
    return roles


def _paired(tokens: np.ndarray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Positions of paired markers, from left to right (SPEC 4.2).

    Each start takes the first end after it that no earlier start has taken or passed; the first start that finds none
    ends the search.
    """
    ends = np.flatnonzero(tokens == end)
    unused = 0
    for opened in np.flatnonzero(tokens == start):
        unused = max(unused, int(np.searchsorted(ends, opened, side="right")))
        if unused >= len(ends):
            return
        yield int(opened), int(ends[unused])
        unused += 1


def weight_table(loss: LossConfig) -> np.ndarray:
    """Float32 [tasks, ROLES]: the loss weight of a token by task and role."""
    table = np.zeros((len(TASKS), ROLES), np.float32)
    table[:, Role.PROMPT] = loss.prompt_weight
    table[:, Role.RESPONSE] = 1.0
    table[:, Role.PLAIN] = 1.0
    for task, weight in loss.response_weights.items():
        table[task_id(task), Role.RESPONSE] = weight
    table[:, SEGMENT:] = table[:, :SEGMENT] * loss.segment_weight
    return table
