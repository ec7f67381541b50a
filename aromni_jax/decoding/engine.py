"""The engine: requests in, events out. Batches of mixed tasks in one compiled program per shape (DESIGN 8)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import jax.numpy as jnp
import numpy as np

from aromni_jax.config import ModelConfig
from aromni_jax.decoding import guidance as guide
from aromni_jax.decoding.grammar import Grammar, Limits, State
from aromni_jax.decoding.loop import Carry, Inputs, decode, grow, prefill
from aromni_jax.decoding.reference import ReferenceGrammar
from aromni_jax.decoding.request import Done, Event, Request, Result, Usage
from aromni_jax.decoding.sampling import Policies, row_keys
from aromni_jax.decoding.streaming import RowStream, SpeechDecoder, TextDecoder
from aromni_jax.errors import UserError
from aromni_jax.model import Params
from aromni_jax.vocabulary import JointVocabulary


class Model(Protocol):
    """What the engine needs of a loaded model."""

    @property
    def params(self) -> Params: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def vocabulary(self) -> JointVocabulary: ...


class Engine:
    """Decodes requests in batches.

    Shapes are rounded up to powers of two, so a program is compiled once per (batch, prompt, cache) bucket and
    never again for other lengths, limits, policies, scales or seeds. The cache begins small and doubles when it is
    full: short answers never pay for the room that long ones may need.

    Args:
      model: anything with `params`, `config` and `vocabulary`.
      text_codec: turns text pieces into the text of events; without it there are no `TextPiece` events.
      speech_codec: adds samples to `SpeechChunk` events.
      chunk: decoding steps per call of the compiled loop; events come in bursts of so many tokens.
      max_batch: requests decoded at once; more are decoded in turn.
      grammar: "strict" keeps every output well-formed; "reference" follows the released code, see `reference`.
    """

    def __init__(
        self,
        model: Model,
        *,
        text_codec: TextDecoder | None = None,
        speech_codec: SpeechDecoder | None = None,
        chunk: int = 32,
        max_batch: int = 32,
        grammar: Literal["strict", "reference"] = "strict",
    ) -> None:
        self.vocabulary = model.vocabulary
        self._params, self._config = model.params, model.config
        self._grammar = {"strict": Grammar, "reference": ReferenceGrammar}[grammar](model.vocabulary)
        self._text_codec, self._speech_codec = text_codec, speech_codec
        self._chunk, self._max_batch = chunk, max_batch

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Results in the order of the requests. Raises as `stream`."""
        # Requests of like size are decoded together, so that none waits for a much longer one.
        pairs = self._with_limits(requests)
        sizes = [(limit.max_new_tokens, len(request.prompt_tokens)) for request, limit in pairs]
        order = sorted(range(len(requests)), key=sizes.__getitem__)
        results: list[Result] = []
        for batch, limits in self._batches([pairs[n] for n in order]):
            rows = [_Row(request, limit) for request, limit in zip(batch, limits, strict=True)]
            for chunk, now in self._chunks(batch, limits):
                for row, (tokens, states, _) in zip(rows, chunk, strict=True):
                    row.extend(tokens, states, now)
            results += [row.result() for row in rows]
        return [results[place] for place in np.argsort(order)]

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Events of all requests, in order per request; the last one of each is `Done`.

        Raises:
          UserError: before anything runs, naming the request: id out of range, empty prompt, prompt that leaves no
            room in the context, limits that cannot be met.
        """
        for batch, limits in self._batches(self._with_limits(requests)):
            rows = [_Row(request, limit) for request, limit in zip(batch, limits, strict=True)]
            streams = [
                RowStream(request.id, self.vocabulary, self._text_codec, self._speech_codec) for request in batch
            ]
            for chunk, now in self._chunks(batch, limits):
                for row, stream, (tokens, states, done) in zip(rows, streams, chunk, strict=True):
                    for token, state in zip(tokens.tolist(), states.tolist(), strict=True):
                        yield from stream.push(token, State(state))
                    yield from stream.flush()
                    row.extend(tokens, states, now)
                    if len(tokens) and done:
                        yield from stream.finish()
                        yield Done(row.request.id, len(row.tokens), row.result())

    def _with_limits(self, requests: Sequence[Request]) -> list[tuple[Request, Limits]]:
        return [(request, self._limits(request, n)) for n, request in enumerate(requests)]

    def _batches(
        self, pairs: Sequence[tuple[Request, Limits]]
    ) -> Iterator[tuple[tuple[Request, ...], tuple[Limits, ...]]]:
        """Batches of nearly equal size: the last one fits the program of the others."""
        count = -(-len(pairs) // self._max_batch)
        for part in np.array_split(np.arange(len(pairs)), max(count, 1)):
            if part.size:
                requests, limits = zip(*(pairs[n] for n in part), strict=True)
                yield requests, limits

    def _limits(self, request: Request, number: int) -> Limits:
        """The request's limits, cut to the room that the context leaves; `UserError` if that is too little."""
        where = f"request {request.id or number}"
        prompt = np.asarray(request.prompt_tokens)
        context = self._config.max_positions
        if prompt.ndim != 1 or not prompt.size or not np.issubdtype(prompt.dtype, np.integer):
            raise UserError(f"{where}: the prompt must be a list of token ids, at least one")
        if prompt.min() < 0 or prompt.max() >= self.vocabulary.size:
            raise UserError(f"{where}: the prompt holds ids outside 0..{self.vocabulary.size - 1}")
        room = context - prompt.size
        if room < 1:
            raise UserError(f"{where}: the prompt has {prompt.size} tokens, the context only {context}; shorten it")
        if not 0 <= request.seed < 2**32:
            raise UserError(f"{where}: seed {request.seed} is outside 0..{2**32 - 1}")
        limits = Limits(min(request.max_new_tokens, room), request.allowed, request.first, request.max_spans)
        self._grammar.check(limits, where if request.max_new_tokens <= room else f"{where} (context {context})")
        return limits

    def _chunks(
        self, requests: Sequence[Request], limits: Sequence[Limits]
    ) -> Iterator[tuple[list[tuple[np.ndarray, np.ndarray, bool]], float]]:
        """Per chunk: each request's new tokens, their states, whether it is done; and the seconds since the start."""
        started = time.perf_counter()
        carry, inputs = self._prepare(requests, limits)
        guided = inputs.branches.source_r.shape[0] > inputs.keys_b.shape[0]
        used = int(inputs.prompt_slots)
        for _ in range(-(-max(limit.max_new_tokens for limit in limits) // self._chunk)):
            used += self._chunk
            if used > carry.cache.length:
                carry = dataclasses.replace(carry, cache=grow(carry.cache, length=_power_of_two(used)))
            carry, packed = decode(
                self._params, carry, inputs,
                config=self._config, grammar=self._grammar, steps=self._chunk, guided=guided,
            )  # fmt: skip
            tokens_sb, states_sb, after_sb = np.asarray(packed)
            live_sb = states_sb != State.DONE
            rows = range(len(requests))
            yield (
                [
                    (tokens_sb[live_sb[:, b], b], states_sb[live_sb[:, b], b], after_sb[-1, b] == State.DONE)
                    for b in rows
                ],
                time.perf_counter() - started,
            )
            if (after_sb[-1, : len(requests)] == State.DONE).all():
                return

    def _prepare(self, requests: Sequence[Request], limits: Sequence[Limits]) -> tuple[Carry, Inputs]:
        """Round every shape up to its bucket, lay out the rows, read the prompts."""
        prompts = [list(request.prompt_tokens) for request in requests]
        side, side_rows, weights = guide.plan(
            self.vocabulary,
            prompts,
            [request.guidance for request in requests],
            [State.IMAGE in limit.allowed for limit in limits],
        )
        batch = _power_of_two(len(requests))
        rows = batch + (_power_of_two(len(side)) if side else 0)
        slots = max(_power_of_two(max(map(len, prompts))), _SMALLEST_PROMPT)

        tokens_rp = np.full((rows, slots), self.vocabulary.pad, np.int32)
        lengths_r = np.zeros(rows, np.int32)
        for row, prompt in [*enumerate(prompts), *((batch + n, ids) for n, (_, _, ids) in enumerate(side))]:
            tokens_rp[row, slots - len(prompt) :] = prompt
            lengths_r[row] = len(prompt)

        idle = batch - len(requests)
        source_r = np.arange(rows)
        source_r[batch:] = len(requests) - 1  # idle side rows read along with any row; nobody looks at them
        reads_r = np.zeros(rows, np.int32)
        for n, (main, reads, _) in enumerate(side):
            source_r[batch + n], reads_r[batch + n] = main, reads
        own_b = np.arange(batch)[:, None]
        side_rows = np.pad(side_rows, ((0, idle), (0, 0)), constant_values=-1)
        side_rows = np.where(side_rows < 0, own_b, batch + side_rows)

        fill = [Limits(1)] * idle
        inputs = Inputs(
            rules=self._grammar.rules([*limits, *fill]),
            policies=Policies.stack([*(request.policies for request in requests), *({} for _ in fill)]),
            keys_b=row_keys([*(request.seed for request in requests), *(0 for _ in fill)]),
            branches=guide.Branches(
                source_r=jnp.asarray(source_r, jnp.int32),
                reads_r=jnp.asarray(reads_r),
                prompt_r=jnp.asarray(lengths_r),
                image_row_b=jnp.asarray(side_rows[:, 0], jnp.int32),
                plain_row_b=jnp.asarray(side_rows[:, 1], jnp.int32),
                weights_b3=jnp.asarray(np.pad(weights, ((0, idle), (0, 0)))),
            ),
            prompt_slots=jnp.asarray(slots, jnp.int32),
        )
        carry = prefill(
            self._params, jnp.asarray(tokens_rp), jnp.asarray(lengths_r), inputs.rules,
            jnp.arange(batch) >= len(requests),
            config=self._config, grammar=self._grammar,
            cache_length=max(_power_of_two(slots + self._chunk), _SMALLEST_CACHE),
        )  # fmt: skip
        return carry, inputs


class _Row:
    """What one request has got so far."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request = request
        self.tokens: list[int] = []
        self._limit = limits.max_new_tokens
        self._states: list[int] = []
        self._first_token = self._total = 0.0
        self._first_audio: float | None = None

    def extend(self, tokens: np.ndarray, states: np.ndarray, now: float) -> None:
        """Take in new tokens that were ready at `now`."""
        if not len(tokens):
            return
        if not self.tokens:
            self._first_token = now
        self.tokens += tokens.tolist()
        self._states += states.tolist()
        self._total = now
        if self._first_audio is None and State.SPEECH in states:
            self._first_audio = now

    def result(self) -> Result:
        usage = Usage(
            prompt_tokens=len(self.request.prompt_tokens),
            new_tokens=len(self.tokens),
            first_token=self._first_token,
            first_audio=self._first_audio,
            total=self._total,
        )
        finish = "length" if len(self.tokens) == self._limit else "stop"
        tokens, states = np.asarray(self.tokens, np.int32), np.asarray(self._states, np.int8)
        return Result(self.request.id, tokens, states, finish, usage)


_SMALLEST_PROMPT = 16
_SMALLEST_CACHE = 128


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
