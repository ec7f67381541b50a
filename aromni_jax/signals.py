"""Ctrl-C and SIGTERM: noted while work goes on, to be acted on where it can be left in order; or heard at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_AGAIN = 0.05  # seconds; long enough for a callback to end, too short to be noticed


class NotedSignals:
    """Notes SIGTERM and SIGINT while the block runs; a second one of a kind acts as usual.

    Outside the main thread, where Python delivers no signals, nothing is changed.

    Attributes:
      name: of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._raises = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> NotedSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.name = signal.Signals(number).name
        signal.signal(number, self._before[number])
        if self._raises:
            raise KeyboardInterrupt(self.name)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block one also raises KeyboardInterrupt, though it may be lost; so does one that came before.

        For work that waits for other processes, and holds no lock that others need, such as that of a progress bar.
        """
        self._raises = True
        try:
            if self.name:
                raise KeyboardInterrupt(self.name)
            yield
        finally:
            self._raises = False


@contextlib.contextmanager
def heard_everywhere() -> Iterator[None]:
    """While the block runs, one Ctrl-C is enough, whatever Python is doing when it comes.

    The KeyboardInterrupt of a Ctrl-C that comes in a finaliser, a weakref's callback or one of garbage collection (JAX
    has one, and it takes long) is dropped: Python says "Exception ignored in ..." and the work goes on. Here the signal
    is raised again a moment later, until it comes where it is heard; nothing is said. Whoever handles SIGINT handles
    the repetition. Outside the main thread, where Python delivers no signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook, over = sys.unraisablehook, False

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt) and not over:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            hook(unraisable)

    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        over = True
        if sys.unraisablehook is dropped:  # else a hook around this one stays: what it keeps quiet may still come
            sys.unraisablehook = hook
        signal.signal(signal.SIGALRM, before)
