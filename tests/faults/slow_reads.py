"""A storage that is slow, or hangs: reads of one file by another process are held by ptrace, as a debugger does it."""

import contextlib
import ctypes
import os
import signal
import threading
import time

import pytest

_SYSCALL, _SEIZE, _INTERRUPT = 24, 0x4206, 0x4207  # <sys/ptrace.h>
_TRACE_SYSTEM_CALLS, _WALL = 1, 0x40000000
_SYSTEM_CALL_STOP = signal.SIGTRAP | 0x80
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


@contextlib.contextmanager
def slow_reads(pid, file, seconds):
    """While the block runs, every system call of the process on this open file waits so long before it is let go.

    Of the child process nothing but its output may be waited for meanwhile.
    """
    end = threading.Event()
    problems = []
    tracer = threading.Thread(target=_hold, args=(pid, str(file), seconds, end, problems))
    tracer.start()
    try:
        yield
    finally:
        end.set()
        tracer.join()  # with this thread end its traces: all that it holds goes on
    if problems:
        pytest.skip(f"ptrace is not allowed here ({problems[0]})")


def _hold(pid, file, seconds, end, problems):
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    for thread in threads:
        if _ptrace(_SEIZE, thread, 0, _TRACE_SYSTEM_CALLS) or _ptrace(_INTERRUPT, thread, 0, 0):
            problems.append(os.strerror(ctypes.get_errno()))
            return
    held = {}  # thread -> when it may go on
    while not end.is_set():
        for thread in threads:
            if held.get(thread, 0.0) <= time.monotonic() and not _look(pid, thread, file, held, seconds):
                threads.remove(thread)
                break
        time.sleep(0.0005)


def _look(pid, thread, file, held, seconds):
    """Let the thread go on if it has stopped, unless it is to be held; whether it still lives."""
    if held.pop(thread, None) is not None:
        return _ptrace(_SYSCALL, thread, 0, 0) == 0
    flags = os.WEXITED | os.WSTOPPED | os.WNOHANG | _WALL
    try:
        found = os.waitid(os.P_PID, thread, flags | os.WNOWAIT)
        if found is None:
            return True
        if found.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
            if thread != pid:  # the process itself is for its parent to wait for
                os.waitid(os.P_PID, thread, flags)
            return False
        stop = found.si_status
        os.waitid(os.P_PID, thread, flags)
    except ChildProcessError:
        return False
    if stop & 0xFF == _SYSTEM_CALL_STOP and _reads(pid, thread, file):
        held[thread] = time.monotonic() + seconds / 2  # going in, and coming out
        return True
    passed_on = stop if stop < 0x80 and stop != signal.SIGTRAP else 0
    return _ptrace(_SYSCALL, thread, 0, passed_on) == 0


def _reads(pid, thread, file):
    """Whether the system call that the thread is stopped at is one on the file."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/task/{thread}/syscall") as words:
            first_argument = int(words.read().split()[1], 16)
        return os.readlink(f"/proc/{pid}/fd/{first_argument}") == file
    return False
