"""What goes into the engine and what comes out: requests, events, results."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from aromni_jax.decoding.grammar import Limits, State
from aromni_jax.decoding.guidance import Guidance
from aromni_jax.decoding.sampling import Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One row of a batch.

    Attributes:
      prompt_tokens: joint-vocabulary ids, bos first.
      max_new_tokens, allowed, first, max_spans: see `grammar.Limits`. A row also stops at the end of the context.
      policies: per state; states left out are greedy.
      guidance: of pictures; None = off.
      seed: of the row's own random draws; its tokens depend on nothing else in the batch.
      id: comes back in every event and result.
    """

    prompt_tokens: Sequence[int]
    max_new_tokens: int = 512
    allowed: frozenset[State] = Limits.allowed
    first: State | None = None
    max_spans: int = Limits.max_spans
    policies: Mapping[State, Policy] = dataclasses.field(default_factory=dict)
    guidance: Guidance | None = None
    seed: int = 0
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of tokens chosen in one state: tokens[start:stop]."""

    state: State
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Usage:
    """Counts and clocks of one request, seconds since its batch was started.

    Attributes:
      prompt_tokens: of the whole prompt.
      reused_tokens: of them, those that a session had in its cache; fed_tokens: the others, which were read.
      tokens_per_second: new tokens of this request over its whole time, prefill included.
      first_audio: when the first speech chunk was ready; None without speech.
    """

    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    first_token: float
    first_audio: float | None
    total: float

    @property
    def fed_tokens(self) -> int:
        return self.prompt_tokens - self.reused_tokens

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.total


@dataclasses.dataclass(frozen=True)
class Result:
    """What a request got.

    Attributes:
      id: of the request.
      tokens: int32 [n], the closing eos or eom included, the prompt not.
      states: int8 [n], the `State` each token was chosen in.
      finish: "stop", or "length" when max_new_tokens (or the context) was used up.
      usage: counts and clocks.
    """

    id: str
    tokens: np.ndarray
    states: np.ndarray
    finish: str
    usage: Usage

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Runs of equal state, in order."""
        edges = np.flatnonzero(np.diff(self.states)) + 1
        bounds = [0, *edges.tolist(), len(self.states)]
        return tuple(
            Segment(State(int(self.states[start])), start, stop)
            for start, stop in itertools.pairwise(bounds)
            if stop > start
        )


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened to one request; `at` is the number of tokens it had emitted."""

    id: str
    at: int


@dataclasses.dataclass(frozen=True)
class StateChange(Event):
    """The row has entered `state`; every row begins in TEXT, which is not announced."""

    state: State


@dataclasses.dataclass(frozen=True)
class TextPiece(Event):
    """More text, cut where it is valid UTF-8; `state` is TEXT or TRANSCRIPT."""

    text: str
    state: State


@dataclasses.dataclass(frozen=True)
class SpeechChunk(Event):
    """More speech: 0-based codes int32 [T], and with a codec samples float32 [n], which lag by its look-ahead.

    `last` marks the end of the utterance; its chunk may bring samples without codes.
    """

    codes: np.ndarray
    samples: np.ndarray | None
    last: bool


@dataclasses.dataclass(frozen=True)
class ImageDone(Event):
    """A whole picture: 0-based codes int32 [N]."""

    codes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Done(Event):
    """The request is finished; nothing follows for it."""

    result: Result
