"""Several processes as one run: how they find each other, what they tell each other, and how they end.

All of it goes over the hosts' network by JAX's coordination service and touches no device. Every wait has a name and a
time limit, and who did not come is named.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # the public module has no barriers with a time limit and no key-value store

from aromni_jax.errors import UserError

START_SECONDS = 300.0  # for all processes to come; the hosts of a pod are not ready at the same moment
WAIT_SECONDS = 600.0  # for all to have done the same; a host may read its data slowly
_FAILED_SECONDS = 30.0  # how long a process that has failed waits for the others to hear of it
_GRACE_SECONDS = 60.0  # JAX's own limit is so much later than ours: it ends the process without a word of ours
_SHARED_SECONDS = 15.0  # for a file to be seen on the other hosts
_LOOK_SECONDS = 3.0  # how often a process looks whether another one has failed
_FAILED = "aromni/failed"
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection reset")  # what is said of a partner that left

_waits: collections.Counter[str] = collections.Counter()
_exit_code: list[int] = []
_ending = threading.Event()


def initialize_distributed(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = START_SECONDS,
) -> None:
    """Connect this process to the others; call it once, before anything asks for devices.

    On TPU pods, SLURM, GKE and Open MPI JAX finds the arguments itself; elsewhere give all three.

    Args:
      coordinator: "host:port" of process 0, as the others reach it; the port has to be free there.
      processes: how many there are; `process_id` counts them from 0.
      timeout: seconds to wait for all of them.

    Raises:
      UserError: arguments that do not go together, no cluster found, or not all came in time.
    """
    given = (coordinator, processes, process_id)
    if given.count(None) not in (0, 3):
        raise UserError("--coordinator, --processes and --process-id go together: give all three or none")
    if coordinator is not None and processes is not None and process_id is not None:
        _check_arguments(coordinator, processes, process_id)
    who = "this process" if process_id is None else f"process {process_id} of {processes}"
    failed: list[Exception] = []

    def start() -> None:
        try:
            jax.distributed.initialize(
                *given,
                cluster_detection_method=None if coordinator is None else "deactivate",
                initialization_timeout=int(timeout + _GRACE_SECONDS),
            )
        except Exception as error:  # also what JAX's cluster detection raises
            failed.append(error)

    # In a thread of its own: JAX answers a time-out by aborting the process with pages of C++ frames.
    starting = threading.Thread(target=start, name="aromni-distributed", daemon=True)
    starting.start()
    starting.join(timeout)
    if starting.is_alive():
        where = f"at {coordinator} " if coordinator else ""
        _exit_code.append(1)
        atexit.register(_leave)
        raise UserError(
            f"{who}: not all met {where}within {timeout:.0f} s: start every one, and open the port between them"
        )
    if failed and "should be defined" in str(failed[0]):
        raise UserError(
            "--distributed: this is no TPU pod, SLURM step, GKE job or Open MPI run that JAX knows; give "
            "--coordinator, --processes and --process-id, or leave --distributed out for a single process"
        )
    if failed:
        raise UserError(f"{who}: cannot start the run of several processes: {failed[0]}") from failed[0]
    threading.Thread(target=_watch, name="aromni-others", daemon=True).start()
    atexit.register(_leave)


def _check_arguments(coordinator: str, processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(f"--coordinator {coordinator}: expected host:port")
    if not 0 <= process_id < processes:
        raise UserError(f"--process-id {process_id}: must be 0 to {processes - 1} with --processes {processes}")


@contextlib.contextmanager
def failing_alone() -> Iterator[None]:
    """A process of several that fails in the block ends at once, and so do the others, with its error.

    Left to JAX, it would wait for them at its end, and they, in the middle of a step, for it: five minutes of nothing.
    Whoever started them can start all again. One that was killed told nobody; a step that breaks off for that is one
    line here. (When it was process 0, JAX is the first to notice, and ends all others with words of its own.)
    """
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized():
            _ending.set()
            _exit_code.append(130 if isinstance(error, KeyboardInterrupt) else 1)
            state = distributed.global_state
            reason = f"process {state.process_id} of {state.num_processes} failed: {str(error) or type(error).__name__}"
            told = ""
            try:
                _client().key_value_set(_FAILED, reason)
            except jax.errors.JaxRuntimeError:  # another one was first, or the service is gone
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    told = _client().key_value_try_get(_FAILED)
            if state.process_id == 0:  # the service ends with it: time for the others to look
                time.sleep(2 * _LOOK_SECONDS)
            if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in _LOST):
                lost = f"process {state.process_id} of {state.num_processes} lost another one"
                raise UserError(told or f"{lost} ({str(error).splitlines()[0]}); the others' logs say why") from error
        raise


def _watch() -> None:
    """Runs in a thread beside the work: ends this process when another one has failed."""
    client = _client()
    while not _ending.wait(_LOOK_SECONDS):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # not there: all is well
            print(f"aromni: {client.key_value_try_get(_FAILED)}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(1)


def _leave() -> None:
    """Runs at exit, before JAX's own clean-up."""
    _ending.set()
    if _exit_code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code[0])


def _client() -> Any:
    """JAX's connection to the coordination service."""
    return distributed.global_state.client


def exchange(name: str, value: str = "", *, timeout: float = WAIT_SECONDS) -> list[str]:
    """The value of every process, in their order; a barrier, therefore. All have to call it, in the same order.

    Raises:
      UserError: some did not come in time, or one has ended.
    """
    state = distributed.global_state
    client = _client()
    if client is None or state.num_processes == 1:
        return [value]
    _waits[name] += 1
    place = f"aromni/{name}/{_waits[name]}/"
    client.key_value_set(f"{place}{state.process_id}", value)
    try:
        client.wait_at_barrier(f"{place}barrier", int(1000 * timeout))
        return [client.blocking_key_value_get(f"{place}{index}", 1000) for index in range(state.num_processes)]
    except jax.errors.JaxRuntimeError as error:
        late = _late(place)
        problem = f"did not come within {timeout:.0f} s" if late else "have lost each other"
        raise UserError(
            f"process {state.process_id} waited at {name!r}: {late or 'the processes'} {problem}; their logs say why"
        ) from error


def _late(place: str) -> str:
    state = distributed.global_state
    try:
        there = {key.rsplit("/", 1)[1] for key, _ in _client().key_value_dir_get(place)}
    except jax.errors.JaxRuntimeError:  # the service went with process 0
        return ""
    absent = [index for index in range(state.num_processes) if str(index) not in there]
    shown = ", ".join(map(str, absent[:8])) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
    return f"process {shown} of {state.num_processes}" if absent else ""


@contextlib.contextmanager
def together(name: str, *, timeout: float = WAIT_SECONDS) -> Iterator[None]:
    """What fails in the block on one process fails on all, with its words; every process waits for the others here."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        with contextlib.suppress(UserError):
            exchange(name, f"{kind}{error}" or type(error).__name__, timeout=min(timeout, _FAILED_SECONDS))
        raise
    problems = exchange(name, timeout=timeout)
    for index, problem in enumerate(problems):
        if problem:
            raise UserError(f"process {index} of {len(problems)}, {name}: {problem}")


def same_everywhere(name: str, values: Mapping[str, Any]) -> None:
    """UserError, with the first difference, unless all processes give the same (JSON) values."""
    found = [json.loads(text) for text in exchange(name, json.dumps(dict(values), sort_keys=True))]
    for index, other in enumerate(found):
        for key in sorted(set(other) | set(found[0])):
            mine, theirs = found[0].get(key), other.get(key)
            if mine != theirs:
                raise UserError(
                    f"{name}: {key} is {mine!r} on process 0 and {theirs!r} on process {index}: start every process "
                    "with the same code, data, config and options"
                )


def check_shared(folder: pathlib.Path) -> None:
    """UserError unless every process sees in `folder` what process 0 writes there."""
    if distributed.global_state.num_processes in (None, 1):
        return
    first = distributed.global_state.process_id == 0
    mark = folder / f".shared-{uuid.uuid4().hex[:8]}"
    try:
        with together("run folder"):
            if first:
                mark.touch()
        seen = folder / exchange("run folder", mark.name)[0]
        with together("run folder"):
            end = time.monotonic() + _SHARED_SECONDS
            while not seen.exists():
                if time.monotonic() > end:
                    raise UserError(
                        f"{folder} on {socket.gethostname()} is not the folder of process 0: give a --run-dir that all "
                        "hosts share (NFS, or a bucket mounted on each)"
                    )
                time.sleep(0.2)
    finally:
        if first:
            mark.unlink(missing_ok=True)
