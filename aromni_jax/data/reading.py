"""What is being read, for how long, and which files are slow: what a run that waits for data can tell."""

from __future__ import annotations

import collections
import contextlib
import logging
import pathlib
import threading
import time
from collections.abc import Iterator

from aromni_jax.errors import UserError

_LOG = logging.getLogger(__name__)
_NOTICE_SECONDS = 10.0  # a wait so long is told of; then again whenever it has doubled

_lock = threading.Lock()
_now: dict[int, tuple[str, float]] = {}  # thread -> what it reads, since when
_spent: collections.defaultdict[str, float] = collections.defaultdict(float)  # file -> seconds


@contextlib.contextmanager
def noted(file: pathlib.Path, place: str = "") -> Iterator[None]:
    """While the block runs, this thread reads `place` of `file` (nothing: opens it)."""
    start = time.monotonic()
    _now[threading.get_ident()] = (place or f"{file} (being opened)", start)
    try:
        yield
    finally:
        del _now[threading.get_ident()]
        with _lock:
            _spent[str(file)] += time.monotonic() - start


def slowest_file() -> tuple[str, float] | None:
    """The file that took the most seconds since the last call, and how many; None if nothing was read."""
    with _lock:
        found = max(_spent.items(), key=lambda item: item[1], default=None)
        _spent.clear()
    return found


class Patience:
    """How long one wait for data may take, and what is said meanwhile.

    Args:
      seconds: `data.timeout_seconds`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start = time.monotonic()
        self._notice = _NOTICE_SECONDS

    def left(self) -> float:
        """Seconds until something has to be said, by `waited`."""
        return max(0.0, self._start + min(self._notice, self._seconds) - time.monotonic())

    def waited(self) -> None:
        """Say what is waited for; UserError if the patience is at its end."""
        waited = time.monotonic() - self._start
        if waited >= self._seconds:
            raise UserError(
                f"no data for {waited:.0f} s: {_reading()}; data.timeout_seconds is {self._seconds:g}: look at the "
                "storage, then start the same command again"
            )
        if waited >= self._notice:
            _LOG.warning("waiting for data, %.0f s so far: %s", waited, _reading())
            self._notice *= 2


def _reading() -> str:
    """The oldest of the reads that are under way."""
    under_way = sorted(_now.copy().values(), key=lambda read: read[1])
    if not under_way:
        return "no file is being read"
    what, start = under_way[0]
    return f"{what} is being read for {time.monotonic() - start:.0f} s"
