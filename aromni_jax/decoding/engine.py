"""The engine: requests in, events out. Mixed tasks side by side in one compiled program per shape (DESIGN 8)."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from jax.sharding import Mesh

from aromni_jax.config import ModelConfig
from aromni_jax.decoding.grammar import Grammar, Limits, State
from aromni_jax.decoding.guidance import as_ids
from aromni_jax.decoding.placement import Placement
from aromni_jax.decoding.pool import Pool, Progress
from aromni_jax.decoding.reference import ReferenceGrammar
from aromni_jax.decoding.request import Done, Event, Request, Result, SpeechChunk
from aromni_jax.decoding.row import Row, never_began
from aromni_jax.decoding.seats import Stays
from aromni_jax.decoding.session import Rows, Session
from aromni_jax.decoding.source import Arrival, Listed, RequestQueue, Source
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
    """Decodes many requests at once; when one is done, another takes its place (see `pool`).

    Shapes are rounded up to a few sizes, so a program is compiled once per (batch, prompt, cache) bucket and
    never again for other lengths, limits, policies, scales or seeds. The cache begins small and grows when it is
    full: short answers never pay for the room that long ones may need. "Prompt" means the part of it that is read: with
    a `Session`, what an earlier call left in the cache is not read again.

    Args:
      model: anything with `params`, `config` and `vocabulary`.
      text_codec: turns text pieces into the text of events; without it there are no `TextPiece` events.
      speech_codec: adds samples to `SpeechChunk` events.
      chunk: decoding steps per call of the compiled loop at most; events come in bursts of so many tokens, the first
        ones after a newcomer in shorter ones.
      max_batch: requests decoded at once; more wait, first come first served. A guided one has up to three rows of
        the cache.
      grammar: "strict" keeps every output well-formed; "reference" follows the released code, see `reference`.
      cache_dtype: of keys and values: "float32", "bfloat16", "int8" (half the memory of bfloat16; its error stands
        in `benchmarks/results/int8_cache.md`), or None = the compute dtype. On CPUs, float32 is the fastest: the others
        save memory there, but are widened at every step.
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
        for name, size in (("chunk", chunk), ("max_batch", max_batch)):
            if size < 1:
                raise UserError(f"engine: {name} must be at least 1, got {size}")
        grammars = {"strict": Grammar, "reference": ReferenceGrammar}
        if grammar not in grammars:
            raise UserError(f"engine: grammar {grammar!r}: use one of {', '.join(grammars)}")
        self.vocabulary = model.vocabulary
        self._place = Placement(model.config, mesh, cache_dtype)
        self._params, self._config = self._place.params(model.params), model.config
        self.grammar = grammars[grammar](model.vocabulary)
        self._text_codec, self._speech_codec = text_codec, speech_codec
        self._chunk, self._max_batch = chunk, max_batch

    @property
    def context(self) -> int:
        """Positions of the model: the most tokens of a prompt and its answer together."""
        return self._config.max_positions

    def session(self) -> Session:
        """A place for the caches of one or more dialogs between their turns: give it to every call for them.

        A follow-up turn, whose prompt begins with an earlier prompt and its answer, then reads only what is new. Its
        tokens are those of a call without a session, but where rounding decides between nearly equal logits: what is
        new sees the rest as the cache keeps it, coarsely in int8; a prompt that is read whole sees itself exactly.
        """
        return Session(self)

    def generate(self, requests: Sequence[Request], session: Session | None = None) -> list[Result]:
        """Results in the order of the requests. Raises as `stream`."""
        order = list(range(len(requests)))
        if session is None:
            self._check(requests)
            # The longest first, so that none of them is left to be decoded alone at the end.
            order.sort(key=lambda n: (-requests[n].max_new_tokens, -len(requests[n].prompt_tokens)))
        results: dict[int, Result] = {}
        for _, progress in self._decode([requests[n] for n in order], session):
            results |= {order[row.number]: row.result() for row, *_ in progress if row.finish}
        return [results[n] for n in range(len(requests))]

    def results(self, requests: Iterable[Request] | RequestQueue, at_once: int | None = None) -> Generator[Result]:
        """The result of each request as it ends, without the events of `stream`, which says what requests may be.

        Args:
          at_once: as many will be decoded at once at most; fewer than `max_batch` need less time and memory.
        """
        with contextlib.closing(self._decode(requests, None, at_once)) as chunks:
            for over, progress in chunks:
                yield from over
                yield from (row.result() for row, *_ in progress if row.finish)

    def stream(self, requests: Iterable[Request] | RequestQueue, session: Session | None = None) -> Generator[Event]:
        """Events of all requests, in order per request; the last one of each is `Done`.

        Requests of a list are checked before anything runs. Any other iterable is asked for a request when there is
        room for one, and should have it ready; a `RequestQueue` may be filled by other threads meanwhile, and the
        stream ends when it is closed and empty. A bad request of theirs is `Done` with the error, and the others go on.

        Turns of dialogs may come through a queue: what the running batch still holds of a prompt, after an earlier turn
        of it, is not read again. It is held until its place is needed, the oldest first. As with a session, no token
        changes but by rounding. Guided requests read all, as what their side rows have read does not stay.

        Closing the iterator cancels what is not done; the session keeps what has been emitted until then (after Ctrl-C
        in the middle of a chunk, nothing). Nothing is decoded while nobody asks for events, but for two chunks.

        Args:
          session: for a list only.

        Raises:
          UserError: naming the request of the list: id out of range, empty prompt, prompt that leaves no room in the
            context, limits that cannot be met, a field of the wrong kind; a session of another engine.
        """
        streams: dict[int, RowStream] = {}
        with contextlib.closing(self._decode(requests, session)) as chunks:
            for over, progress in chunks:
                for result in over:
                    yield Done(result.id, 0, result)
                for row, tokens, states in progress:
                    if row.number not in streams:
                        streams[row.number] = RowStream(
                            row.request.id, self.vocabulary, self._text_codec, self._speech_codec
                        )
                    yield from self._events(row, streams[row.number], tokens, states)
                    if row.finish:
                        del streams[row.number]
                        yield Done(row.request.id, row.emitted, row.result())

    def _events(self, row: Row, stream: RowStream, tokens: np.ndarray, states: np.ndarray) -> Iterator[Event]:
        """What the new tokens of a row tell."""
        events: list[Event] = []
        for token, state in zip(tokens.tolist(), states.tolist(), strict=True):
            events += stream.push(token, State(state))
        events += stream.flush()
        for event in events:
            if isinstance(event, SpeechChunk) and event.samples is not None and len(event.samples):
                assert self._speech_codec is not None, "samples come from a codec"
                row.hear(len(event.samples) / self._speech_codec.sample_rate)
        yield from events
        if row.finish:
            yield from stream.finish()

    def _decode(
        self, requests: Iterable[Request] | RequestQueue, session: Session | None, at_once: int | None = None
    ) -> Generator[tuple[list[Result], list[Progress]]]:
        """What is over without having begun, and what has come of the others; after every chunk."""
        most = min(at_once or self._max_batch, self._max_batch)
        if not isinstance(requests, Sequence):
            if session is not None:
                raise UserError("a session is for a list of requests: which dialogs go on must be known at once")
            if isinstance(requests, RequestQueue):
                yield from self._run(self._pool(most, Stays.OWN), _Feed(self, requests))
            else:
                yield from self._run(self._pool(most), _Feed(self, Listed(requests)))
            return
        if session is not None and session.owner is not self:
            raise UserError("the session belongs to another engine: its cache is of no use here; make one here")
        self._check(requests)
        if session is None:
            seats = max(min(len(requests), most), 1)
            yield from self._run(self._pool(seats), _Feed(self, Listed(requests)))
            return
        # Batches of nearly equal size: the last one fits the programs of the others. Each keeps its cache.
        count = -(-len(requests) // self._max_batch)
        for number, part in enumerate(np.array_split(np.arange(len(requests)), max(count, 1))):
            if part.size:
                pool = self._pool(len(part), Stays.ALL, session.take(number))
                try:
                    yield from self._run(pool, _Feed(self, Listed([requests[n] for n in part]), first=int(part[0])))
                finally:
                    rows = pool.leave()
                    if rows is not None:
                        session.put(number, rows)

    def _pool(self, seats: int, stays: Stays = Stays.NOTHING, left: Rows | None = None) -> Pool:
        return Pool(
            self._params, self._config, self.grammar, self._place,
            chunk=self._chunk, seats=seats, stays=stays, left=left,
        )  # fmt: skip

    @staticmethod
    def _run(pool: Pool, feed: _Feed) -> Generator[tuple[list[Result], list[Progress]]]:
        try:
            for progress in pool.run(feed):
                for row, *_ in progress:
                    if row.finish:
                        feed.source.release(row.request.id)
                over, feed.over = feed.over, []
                yield over, progress
        finally:
            feed.source.close()

    def _check(self, requests: Sequence[Request]) -> None:
        for n, request in enumerate(requests):
            self.limits(request, n)

    def limits(self, request: Request, number: int = 0) -> Limits:
        """The request's limits, cut to the room that the context leaves; `UserError` if that is too little."""
        where = f"request {(isinstance(request.id, str) and request.id) or number}"
        request.check_kinds(where)
        prompt, context = as_ids(request.prompt_tokens, f"{where}: the prompt"), self.context
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
        self.grammar.check(limits, where if request.max_new_tokens <= room else f"{where} (context {context})")
        return limits


class _Feed:
    """Rows for a pool, of the requests of a source; and what is over before it begins.

    Args:
      first: number of the first row.
    """

    def __init__(self, engine: Engine, source: Source, first: int = 0) -> None:
        self.source = source
        self.over: list[Result] = []
        self._engine, self._number = engine, first

    def take(self, most: int, wait: bool) -> list[Row] | None:
        arrivals = self.source.take(most, wait)
        if wait and not arrivals:
            return None
        return [row for arrival in arrivals if (row := self._admit(arrival))]

    def stopped(self) -> set[str]:
        return self.source.stopped()

    def _admit(self, arrival: Arrival) -> Row | None:
        request, number = arrival.request, self._number
        self._number += 1
        try:
            if not arrival.cancelled:
                limits = self._engine.limits(request, number)
                return Row(number, request, limits, self._engine.grammar, arrival.since)
            self.over.append(never_began(request, "cancelled", arrival.since))
        except UserError as error:
            self.over.append(never_began(request, "refused", arrival.since, str(error)))
        self.source.release(request.id)
        return None
