"""An iterator run ahead in one thread.

Grain's own prefetching joins its thread when an iterator is garbage-collected, wherever that happens; collected inside
another pipeline's thread pool it waits for itself (seen with Grain 0.2.18). This one never joins but at exit.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

from aromni_jax.data.reading import Patience

_T = TypeVar("_T")
_POLL_SECONDS = 0.2  # how soon an abandoned thread notices


class Prefetch(Iterator[_T], Generic[_T]):
    """Yields what `items` yields, made up to `size` ahead; an error is raised where its item would have come.

    Dropping the object (or `stop`) ends the thread.

    Args:
      timeout: seconds that one item may take; UserError, which says what is being read, when it takes longer. Long
        waits are told of before. None: as long as it takes, in silence.
    """

    def __init__(self, items: Iterator[_T], size: int, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._worker = _Worker(items, size)
        weakref.finalize(self, self._worker.stopped.set)
        self._worker.start()

    def __next__(self) -> _T:
        patience = None if self._timeout is None else Patience(self._timeout)
        while True:
            try:
                item, error = self._worker.made.get(timeout=None if patience is None else patience.left())
                break
            except queue.Empty:
                if patience is not None:
                    patience.waited()
        if error is not None:
            self._worker.made.put((None, error))  # asked again, it answers the same
            raise error
        return item

    def stop(self) -> None:
        """Make nothing more."""
        self._worker.stopped.set()


class _Worker(threading.Thread):
    def __init__(self, items: Iterator, size: int) -> None:
        super().__init__(name="aromni-prefetch", daemon=True)
        self._items = items
        self.made: queue.Queue = queue.Queue(size)
        self.stopped = threading.Event()
        _running.add(self)

    def run(self) -> None:
        while not self.stopped.is_set():
            item, stop = None, None
            try:
                item = next(self._items)
            except BaseException as error:  # StopIteration too: it is raised where the next item would have come
                stop = error
            self._put((item, stop))
            if stop is not None:
                return

    def _put(self, made: tuple) -> None:
        while not self.stopped.is_set():
            try:
                return self.made.put(made, timeout=_POLL_SECONDS)
            except queue.Full:
                continue


_running: weakref.WeakSet[_Worker] = weakref.WeakSet()


@atexit.register
def _join_all() -> None:
    """A daemon thread inside a C++ reader must not meet the interpreter's end."""
    for worker in list(_running):
        worker.stopped.set()
    for worker in list(_running):
        worker.join(timeout=5)
