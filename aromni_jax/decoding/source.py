"""Where requests come from: a list, any iterable, or a queue that other threads fill while the engine decodes."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from aromni_jax.decoding.request import Request
from aromni_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Arrival:
    """A request and the `time.perf_counter()` when it was handed in; `cancelled`: it shall not begin."""

    request: Request
    since: float
    cancelled: bool = False


class Source(Protocol):
    """What the engine takes requests from, first come first served."""

    def take(self, most: int, wait: bool) -> list[Arrival]:
        """Up to `most` requests that are to be decoded, and any number of cancelled ones.

        With `wait` the list is empty only if nothing will ever come again.
        """

    def stopped(self) -> set[str]:
        """Ids of requests that were taken and have been cancelled since."""

    def release(self, request_id: str) -> None:
        """The request is over."""

    def close(self) -> None:
        """Nobody takes requests any more."""


class Listed:
    """An iterable of requests, asked for one when there is room for it; it should not wait long."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = iter(requests)
        # Requests of a list are all there from the start.
        self._since = time.perf_counter() if isinstance(requests, list | tuple) else None

    def take(self, most: int, wait: bool) -> list[Arrival]:
        taken = itertools.islice(self._requests, most)
        return [Arrival(request, self._since or time.perf_counter()) for request in taken]

    def stopped(self) -> set[str]:
        return set()

    def release(self, request_id: str) -> None:
        pass

    def close(self) -> None:
        pass


class RequestQueue:
    """Requests for `Engine.stream` from any number of threads, while it runs in one.

    Args:
      limit: requests that wait at most; `submit` waits while there are so many.
    """

    def __init__(self, limit: int = 64) -> None:
        if limit < 1:
            raise UserError(f"a queue of requests needs room for at least one, not {limit}")
        self._limit = limit
        self._waiting: collections.OrderedDict[str, Arrival] = collections.OrderedDict()
        self._withdrawn: list[Arrival] = []
        self._taken: set[str] = set()
        self._stopped: set[str] = set()
        self._closed = False
        self._changed = threading.Condition()

    def submit(self, request: Request, timeout: float | None = None) -> None:
        """Hand in a request; its end is told by the stream's `Done` event, whatever becomes of it.

        Args:
          timeout: seconds to wait for room in the queue; None = as long as it takes.

        Raises:
          UserError: no id, the id of a request that is not over, no room in time, or the queue is closed.
        """
        with self._changed:
            if not request.id:
                raise UserError("a request for a queue needs an id, by which its events are told")
            room = self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._limit, timeout)
            if self._closed:
                raise UserError(f"request {request.id}: the queue is closed")
            if not room:
                raise UserError(f"request {request.id}: {self._limit} others wait in the queue; try again later")
            if request.id in self._waiting or request.id in self._taken:
                raise UserError(f"request {request.id}: another one of this id is not over yet")
            self._waiting[request.id] = Arrival(request, time.perf_counter())
            self._changed.notify_all()

    def cancel(self, request_id: str) -> bool:
        """End a request at the next chunk, with what it has emitted until then. False if it is over or unknown."""
        with self._changed:
            if request_id in self._waiting:
                self._withdrawn.append(dataclasses.replace(self._waiting.pop(request_id), cancelled=True))
                self._taken.add(request_id)
            elif request_id in self._taken:
                self._stopped.add(request_id)
            else:
                return False
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """No more requests: the stream ends when those that were handed in are over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, most: int, wait: bool) -> list[Arrival]:
        """See `Source`; for the engine."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._withdrawn)
            arrivals, self._withdrawn = self._withdrawn, []
            for _ in range(min(most, len(self._waiting))):
                arrivals.append(self._waiting.popitem(last=False)[1])
            self._taken.update(arrival.request.id for arrival in arrivals)
            self._changed.notify_all()
            return arrivals

    def stopped(self) -> set[str]:
        """See `Source`; for the engine."""
        with self._changed:
            return set(self._stopped)

    def release(self, request_id: str) -> None:
        """See `Source`; for the engine."""
        with self._changed:
            self._taken.discard(request_id)
            self._stopped.discard(request_id)
