"""One request on its way through the engine: what it asks of the cache, what it has got so far, its clocks."""

from __future__ import annotations

import operator
import time

import numpy as np

from aromni_jax.decoding import guidance as guide
from aromni_jax.decoding.grammar import Grammar, Limits, State
from aromni_jax.decoding.request import Finish, Request, Result, Usage


class Row:
    """A request with the limits that it has room for.

    Args:
      number: of the request among those of its call.
      since: `time.perf_counter()` when it was handed in.

    Attributes:
      prompt: its tokens.
      side: per side row, what it reads and its prompt.
      branches_2: numbers in `side` of the rows for i and for u, -1 for none; weights_3: coefficients of f, i, u.
      ahead: decoding steps that have been asked for; `limits.max_new_tokens` of them are enough for any answer.
      finish: why it is over; None while it is not.
    """

    def __init__(self, number: int, request: Request, limits: Limits, grammar: Grammar, since: float) -> None:
        self.number, self.request, self.limits = number, request, limits
        self.prompt = list(request.prompt_tokens)
        side, branches_b2, weights_b3 = guide.plan(
            grammar.vocabulary, [self.prompt], [request.guidance], [grammar.most_pictures(limits)]
        )
        self.side = [(reads, prompt) for _, reads, prompt in side]
        self.branches_2, self.weights_3 = branches_b2[0].tolist(), weights_b3[0]
        self.ahead = 0
        self.finish: Finish | None = None
        self._tokens: list[int] = []
        self._states: list[int] = []
        self._since = self._started = since
        self._reused, self._seconds_of_sound = 0, 0.0
        self._first_token = self._total = 0.0
        self._first_speech: float | None = None
        self._first_audio: float | None = None

    @property
    def longest_prompt(self) -> int:
        """Tokens of its own prompt, or of a side row's that is longer."""
        return max(len(self.prompt), *(len(prompt) for _, prompt in self.side), 0)

    @property
    def emitted(self) -> int:
        """Tokens so far."""
        return len(self._tokens)

    def begin(self, reused: int = 0) -> None:
        """Its prompt is read now, but for `reused` tokens that are in the cache."""
        self._reused, self._started = reused, time.perf_counter()

    def extend(self, tokens: np.ndarray, states: np.ndarray, done: bool) -> None:
        """Take in new tokens, which are ready now; with `done` the last ones."""
        self._total = time.perf_counter() - self._started
        if len(tokens) and not self._tokens:
            self._first_token = self._total
        if self._first_speech is None and State.SPEECH in states:
            self._first_speech = self._total
        self._tokens += tokens.tolist()
        self._states += states.tolist()
        if done:
            self.finish = "length" if len(self._tokens) == self.limits.max_new_tokens else "stop"

    def hear(self, seconds: float) -> None:
        """So much more sound is ready now."""
        self._total = time.perf_counter() - self._started
        self._seconds_of_sound += seconds
        if self._first_audio is None:
            self._first_audio = self._total

    def result(self) -> Result:
        """What it got, once it is over."""
        assert self.finish is not None, "the row is still being decoded"
        usage = Usage(
            prompt_tokens=len(self.prompt),
            reused_tokens=self._reused,
            new_tokens=len(self._tokens),
            queued=self._started - self._since,
            first_token=self._first_token,
            first_speech=self._first_speech,
            first_audio=self._first_audio,
            seconds_of_sound=self._seconds_of_sound,
            total=self._total,
        )
        tokens, states = np.asarray(self._tokens, np.int32), np.asarray(self._states, np.int8)
        return Result(self.request.id, tokens, states, self.finish, usage)


def never_began(request: Request, finish: Finish, since: float, error: str | None = None) -> Result:
    """The result of a request that was cancelled or refused before it was read."""
    length = operator.length_hint(request.prompt_tokens)  # 0 for what has none, as arrays of no dimension
    usage = Usage(length, 0, 0, first_token=0.0, total=0.0, queued=time.perf_counter() - since)
    return Result(request.id, np.zeros(0, np.int32), np.zeros(0, np.int8), finish, usage, error)
