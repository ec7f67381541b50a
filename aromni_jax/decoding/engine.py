"""The engine: requests in, events out. Batches of mixed tasks in one compiled program per shape (DESIGN 8)."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Literal, Protocol

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from aromni_jax.config import ModelConfig
from aromni_jax.decoding import guidance as guide
from aromni_jax.decoding.grammar import Grammar, Limits, State
from aromni_jax.decoding.loop import Carry, Inputs, decode, grow, prefill
from aromni_jax.decoding.placement import Placement
from aromni_jax.decoding.reference import ReferenceGrammar
from aromni_jax.decoding.request import Done, Event, Request, Result, Usage
from aromni_jax.decoding.sampling import Policies, row_keys
from aromni_jax.decoding.session import Beginning, Rows, Session, begin, power_of_two
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
    full: short answers never pay for the room that long ones may need. "Prompt" means the part of it that is read: with
    a `Session`, what an earlier call left in the cache is not read again.

    Args:
      model: anything with `params`, `config` and `vocabulary`.
      text_codec: turns text pieces into the text of events; without it there are no `TextPiece` events.
      speech_codec: adds samples to `SpeechChunk` events.
      chunk: decoding steps per call of the compiled loop; events come in bursts of so many tokens.
      max_batch: requests decoded at once; more are decoded in turn.
      grammar: "strict" keeps every output well-formed; "reference" follows the released code, see `reference`.
      cache_dtype: of keys and values: "float32", "bfloat16", "int8" (half the memory of bfloat16; its error stands
        in `benchmarks/results/int8_cache.md`), or None = the compute dtype.
      mesh: devices to decode on: the model is split by the rules of `parallel.sharding`, the cache by rows over replica
        and fsdp and by key/value heads over tensor. None = the default device.
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
        cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.vocabulary = model.vocabulary
        self._place = Placement(model.config, mesh, cache_dtype)
        self._params, self._config = self._place.params(model.params), model.config
        self._grammar = {"strict": Grammar, "reference": ReferenceGrammar}[grammar](model.vocabulary)
        self._text_codec, self._speech_codec = text_codec, speech_codec
        self._chunk, self._max_batch = chunk, max_batch

    @property
    def context(self) -> int:
        """Positions of the model: the most tokens of a prompt and its answer together."""
        return self._config.max_positions

    def session(self) -> Session:
        """A place for the caches of one or more dialogs between their turns: give it to every call for them.

        A follow-up turn, whose prompt begins with an earlier prompt and its answer, then reads only what is new. Its
        tokens are those of a call without a session (but where rounding decides between equal logits).
        """
        return Session(self)

    def generate(self, requests: Sequence[Request], session: Session | None = None) -> list[Result]:
        """Results in the order of the requests. Raises as `stream`."""
        pairs = self._with_limits(requests, session)
        order = list(range(len(requests)))
        if session is None:
            # Requests of like size are decoded together, so that none waits for a much longer one.
            sizes = [(limit.max_new_tokens, len(request.prompt_tokens)) for request, limit in pairs]
            order.sort(key=sizes.__getitem__)
        results: list[Result] = []
        for number, rows in enumerate(self._batches([pairs[n] for n in order])):
            for chunk, now in self._chunks(rows, session, number):
                for row, (tokens, states, _) in zip(rows, chunk, strict=True):
                    row.extend(tokens, states, now)
            results += [row.result() for row in rows]
        return [results[place] for place in np.argsort(order)]

    def stream(self, requests: Sequence[Request], session: Session | None = None) -> Generator[Event]:
        """Events of all requests, in order per request; the last one of each is `Done`.

        Closing the iterator cancels what is not done; the session keeps what has been emitted until then.

        Raises:
          UserError: before anything runs, naming the request: id out of range, empty prompt, prompt that leaves no
            room in the context, limits that cannot be met; a session of another engine.
        """
        for number, rows in enumerate(self._batches(self._with_limits(requests, session))):
            streams = [RowStream(row.request.id, self.vocabulary, self._text_codec, self._speech_codec) for row in rows]
            with contextlib.closing(self._chunks(rows, session, number)) as chunks:
                for chunk, now in chunks:
                    for row, stream, (tokens, states, done) in zip(rows, streams, chunk, strict=True):
                        for token, state in zip(tokens.tolist(), states.tolist(), strict=True):
                            yield from stream.push(token, State(state))
                        yield from stream.flush()
                        row.extend(tokens, states, now)
                        if len(tokens) and done:
                            yield from stream.finish()
                            yield Done(row.request.id, len(row.tokens), row.result())

    def _with_limits(self, requests: Sequence[Request], session: Session | None) -> list[tuple[Request, Limits]]:
        if session is not None and session.owner is not self:
            raise UserError("the session belongs to another engine: its cache is of no use here; make one here")
        return [(request, self._limits(request, n)) for n, request in enumerate(requests)]

    def _batches(self, pairs: Sequence[tuple[Request, Limits]]) -> Iterator[list[_Row]]:
        """Batches of nearly equal size: the last one fits the program of the others."""
        count = -(-len(pairs) // self._max_batch)
        for part in np.array_split(np.arange(len(pairs)), max(count, 1)):
            if part.size:
                yield [_Row(*pairs[n]) for n in part]

    def _limits(self, request: Request, number: int) -> Limits:
        """The request's limits, cut to the room that the context leaves; `UserError` if that is too little."""
        where = f"request {request.id or number}"
        prompt = np.asarray(request.prompt_tokens)
        context = self.context
        if prompt.ndim != 1 or not prompt.size or not np.issubdtype(prompt.dtype, np.integer):
            raise UserError(f"{where}: the prompt must be a list of token ids, at least one")
        if prompt.min() < 0 or prompt.max() >= self.vocabulary.size:
            raise UserError(f"{where}: the prompt holds ids outside 0..{self.vocabulary.size - 1}")
        room = context - prompt.size
        if room < 1:
            raise UserError(f"{where}: the prompt has {prompt.size} tokens, the context only {context}; shorten it")
        if not 0 <= request.seed < 2**32:
            raise UserError(f"{where}: seed {request.seed} is outside 0..{2**32 - 1}")
        if request.guidance is not None:
            request.guidance.check(self.vocabulary, context, where)
        limits = Limits(min(request.max_new_tokens, room), request.allowed, request.first, request.max_spans)
        self._grammar.check(limits, where if request.max_new_tokens <= room else f"{where} (context {context})")
        return limits

    def _chunks(
        self, rows: Sequence[_Row], session: Session | None, number: int
    ) -> Generator[tuple[list[tuple[np.ndarray, np.ndarray, bool]], float]]:
        """Per chunk: each request's new tokens, their states, whether it is done; and the seconds since the start.

        Goes on from what `session` has of batch `number`, and leaves its own cache there when it ends or is closed.
        """
        started = time.perf_counter()
        layout = self._lay_out(rows)
        left: Rows | None = session.take(number) if session is not None else None
        with self._place.active():
            beginning = begin(left, layout.prompts, self._place.new_cache, self._chunk)
        left = None  # from here on there is nothing to leave behind while a program holds the cache
        for row, reused in zip(rows, beginning.keep_r.tolist(), strict=False):
            row.reused = reused
        used = beginning.used + beginning.slots
        with self._place.active():
            carry, inputs = self._read(layout, beginning)
        held = layout.prompts
        try:
            for _ in range(-(-max(row.limits.max_new_tokens for row in rows) // self._chunk)):
                used += self._chunk
                left = None
                with self._place.active():
                    if used > carry.cache.length:
                        carry = dataclasses.replace(carry, cache=grow(carry.cache, length=power_of_two(used)))
                    carry, packed = decode(
                        self._params, carry, inputs,
                        config=self._config, grammar=self._grammar, steps=self._chunk, guided=layout.guided,
                    )  # fmt: skip
                tokens_sb, states_sb, after_sb = np.asarray(packed)
                live_sb = states_sb != State.DONE
                new = [tokens_sb[live_sb[:, b], b] for b in range(len(rows))]
                held = layout.follow(self.vocabulary, held, new)
                left = Rows(carry.cache, held, used)
                yield (
                    [(new[b], states_sb[live_sb[:, b], b], after_sb[-1, b] == State.DONE) for b in range(len(rows))],
                    time.perf_counter() - started,
                )
                if (after_sb[-1, : len(rows)] == State.DONE).all():
                    return
        finally:
            if session is not None and left is not None:
                session.put(number, left)

    def _lay_out(self, rows: Sequence[_Row]) -> _Layout:
        """Side rows beside the requests' own, and both rounded up to their buckets."""
        requests = [row.request for row in rows]
        prompts = [list(request.prompt_tokens) for request in requests]
        side, side_rows, weights = guide.plan(
            self.vocabulary,
            prompts,
            [request.guidance for request in requests],
            [self._grammar.most_pictures(row.limits) for row in rows],
        )
        batch = self._place.bucket(len(rows))
        idle = batch - len(rows)
        readers = [(b, guide.Reads.ALL) for b in range(batch)] + [(main, reads) for main, reads, _ in side]
        prompts += [[] for _ in range(idle)] + [prompt for *_, prompt in side]
        # Idle side rows read along with any row; nobody looks at them.
        more = (self._place.bucket(len(side)) if side else 0) - len(side)
        readers += [(len(rows) - 1, guide.Reads.ALL)] * more
        prompts += [[] for _ in range(more)]

        own_b = np.arange(batch)[:, None]
        side_rows = np.pad(side_rows, ((0, idle), (0, 0)), constant_values=-1)
        side_rows = np.where(side_rows < 0, own_b, batch + side_rows)
        branches = guide.Branches(
            source_r=jnp.asarray([main for main, _ in readers], jnp.int32),
            reads_r=jnp.asarray([reads for _, reads in readers], jnp.int32),
            prompt_r=jnp.asarray([len(prompt) for prompt in prompts], jnp.int32),
            image_row_b=jnp.asarray(side_rows[:, 0], jnp.int32),
            plain_row_b=jnp.asarray(side_rows[:, 1], jnp.int32),
            weights_b3=jnp.asarray(np.pad(weights, ((0, idle), (0, 0)))),
        )
        limits = [*(row.limits for row in rows), *[Limits(1)] * idle]
        return _Layout(requests, limits, prompts, readers, branches)

    def _read(self, layout: _Layout, beginning: Beginning) -> tuple[Carry, Inputs]:
        """Read what the cache does not hold of the prompts."""
        batch, rows, slots = len(layout.limits), len(layout.prompts), beginning.slots
        idle = batch - len(layout.requests)
        tokens_rp = np.full((rows, slots), self.vocabulary.pad, np.int32)
        seen_bv = np.zeros((batch, self.vocabulary.size), bool)
        lengths_r = [len(prompt) for prompt in layout.prompts] - beginning.keep_r
        for r, prompt in enumerate(layout.prompts):
            tokens_rp[r, slots - lengths_r[r] :] = prompt[beginning.keep_r[r] :]
            if r < batch:
                seen_bv[r, prompt] = True
        inputs = Inputs(
            rules=self._grammar.rules(layout.limits),
            policies=Policies.stack([*(request.policies for request in layout.requests), *[{}] * idle]),
            keys_b=row_keys([*(request.seed for request in layout.requests), *[0] * idle]),
            branches=layout.branches,
            prompt_slots=jnp.asarray(beginning.used + slots, jnp.int32),
        )
        carry = prefill(
            self._params, beginning.cache, jnp.asarray(seen_bv), jnp.asarray(tokens_rp),
            jnp.asarray(lengths_r, jnp.int32), jnp.asarray(beginning.keep_r), inputs.rules,
            jnp.arange(batch) >= len(layout.requests),
            config=self._config, grammar=self._grammar,
        )  # fmt: skip
        return carry, inputs


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A batch before its prompts are read: B rows for requests (some idle), then side rows; R in all.

    Attributes:
      requests: fewer than B, where rows are idle; limits: B.
      prompts: R lists of tokens, empty for idle rows.
      readers: per row, the row whose tokens it reads, and what of them.
      branches: the same and more as arrays.
    """

    requests: list[Request]
    limits: list[Limits]
    prompts: list[list[int]]
    readers: list[tuple[int, guide.Reads]]
    branches: guide.Branches

    @property
    def guided(self) -> bool:
        """Whether there are side rows."""
        return len(self.prompts) > len(self.limits)

    def follow(self, vocabulary: JointVocabulary, held: list[list[int]], new: Sequence[np.ndarray]) -> list[list[int]]:
        """What all rows hold, `held` so far, after the requests have emitted `new`."""
        emitted = [tokens.tolist() for tokens in new] + [[]] * (len(self.limits) - len(new))
        return [
            guide.follow(vocabulary, reads, len(prompt), tokens, emitted[main])
            for prompt, (main, reads), tokens in zip(self.prompts, self.readers, held, strict=True)
        ]


class _Row:
    """What one request has got so far."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request, self.limits = request, limits
        self.reused = 0
        self.tokens: list[int] = []
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
            reused_tokens=self.reused,
            new_tokens=len(self.tokens),
            first_token=self._first_token,
            first_audio=self._first_audio,
            total=self._total,
        )
        finish = "length" if len(self.tokens) == self.limits.max_new_tokens else "stop"
        tokens, states = np.asarray(self.tokens, np.int32), np.asarray(self._states, np.int8)
        return Result(self.request.id, tokens, states, finish, usage)
