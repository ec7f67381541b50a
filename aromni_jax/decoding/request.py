"""What goes into the engine and what comes out: requests, events, results."""

from __future__ import annotations

import dataclasses
import itertools
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Literal

import numpy as np

from aromni_jax.decoding.grammar import Limits, State
from aromni_jax.decoding.guidance import Guidance
from aromni_jax.decoding.sampling import Policy
from aromni_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One row of a batch.

    Attributes:
      prompt_tokens: joint-vocabulary ids, bos first.
      max_new_tokens, allowed, first, max_spans: see `grammar.Limits`. A row also stops at the end of the context.
      policies: per state; states left out are greedy.
      guidance: of pictures; None = off.
      seed: of the row's own random draws, 0 <= seed < 2**32. No other request changes them, nor any token but by
        rounding: in a queue the beginning of a prompt may have been read by an earlier one, see `Engine.stream`.
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

    def check_kinds(self, where: str) -> None:
        """`UserError`, prefixed by `where`, if a field (the prompt aside) is not of its kind; it names the first."""
        kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
            "id": ("a string", lambda value: isinstance(value, str)),
            "max_new_tokens": ("a whole number", _is_whole),
            "max_spans": ("a whole number, at least 0", lambda value: _is_whole(value) and value >= 0),
            "seed": ("a whole number", _is_whole),
            "allowed": ("a set of State", lambda value: isinstance(value, Set) and _all_are(State, value)),
            "first": ("a State other than DONE, or None", lambda value: value is None or _may_be_first(value)),
            "policies": ("a mapping of State to Policy", _are_policies),
            "guidance": ("a Guidance or None", lambda value: value is None or isinstance(value, Guidance)),
        }
        for name, (kind, fits) in kinds.items():
            value = getattr(self, name)
            if not fits(value):
                raise UserError(f"{where}: {name} must be {kind}, got {' '.join(reprlib.repr(value).split())}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _all_are(kind: type, values: Iterable[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _may_be_first(value: Any) -> bool:
    return isinstance(value, State) and value != State.DONE


def _are_policies(value: Any) -> bool:
    return isinstance(value, Mapping) and _all_are(State, value) and _all_are(Policy, value.values())


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of tokens chosen in one state: tokens[start:stop]."""

    state: State
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Usage:
    """Counts and clocks of one request. Clocks are seconds since its prompt began to be read, `queued` before that.

    Attributes:
      prompt_tokens: of the whole prompt.
      reused_tokens: of them, those that were in the cache, of a session or of requests of a queue; fed_tokens: the
        others, which were read.
      first_token: when the first token was known.
      total: when the last token was known, or the last sample made.
      queued: seconds from handing the request in until its prompt was read.
      first_speech: when the first speech code was known, which the AR-Omni paper calls first token latency; None
        without speech.
      first_audio: when the first samples were made; None if none were (`generate`, or no speech codec).
      seconds_of_sound: that were made.
    """

    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    first_token: float
    total: float
    queued: float = 0.0
    first_speech: float | None = None
    first_audio: float | None = None
    seconds_of_sound: float = 0.0

    @property
    def fed_tokens(self) -> int:
        return self.prompt_tokens - self.reused_tokens

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the whole time, prefill included; 0 for a request that never began."""
        return self.new_tokens / self.total if self.total else 0.0

    @property
    def real_time_factor(self) -> float | None:
        """Seconds taken per second of sound: below 1 a listener need not wait. None without sound."""
        return self.total / self.seconds_of_sound if self.seconds_of_sound else None


Finish = Literal["stop", "length", "cancelled", "refused"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a request got.

    Attributes:
      id: of the request.
      tokens: int32 [n], the closing eos or eom included (there is none if it was cancelled), the prompt not.
      states: int8 [n], the `State` each token was chosen in.
      finish: "stop"; "length" when max_new_tokens (or the context) was used up; "cancelled", with the tokens until
        then; "refused", without any.
      usage: counts and clocks.
      error: why it was refused, in one line.
    """

    id: str
    tokens: np.ndarray
    states: np.ndarray
    finish: Finish
    usage: Usage
    error: str | None = None

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
class ImageRows(Event):
    """More of a square picture: whole rows of 0-based codes, int32 [rows, side], from row `first` on.

    What the picture had beyond its last burst comes with `ImageDone` alone; so do pictures that are not square.
    """

    first: int
    codes: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageDone(Event):
    """A whole picture: 0-based codes int32 [N]."""

    codes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Done(Event):
    """The request is over (`Result.finish` says why); nothing follows for it."""

    result: Result
