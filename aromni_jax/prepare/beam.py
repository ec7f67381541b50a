"""The Apache Beam pipeline that makes shards; Beam is imported here alone, and only when a pipeline runs."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import pathlib
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aromni_jax.errors import UserError
from aromni_jax.prepare.media import progress_bar
from aromni_jax.signals import NotedSignals

if TYPE_CHECKING:
    from aromni_jax.prepare.corpus import Job

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 1.0  # that workers in other processes have to hear that they are to stop, and to tidy up
# How Beam names the program of a worker process, and the thread that waits for it.
_WORKER, _WAITS_FOR_WORKER = b"apache_beam.runners.worker.sdk_worker_main", "run_worker"
# Beam's own runner for one machine. Its "DirectRunner" would first try to download another one, written in Go.
_LOCAL = "FnApiRunner"


def run_pipeline(job: Job, counts: Sequence[int], options: Sequence[str], progress: bool) -> None:
    """Make all shards that are not there.

    Args:
      counts: items of every shard, for the progress; 0 = unknown.
      options: Beam's, such as "--runner=FlinkRunner".

    Raises:
      UserError: what a worker raises, no Apache Beam, options that it refuses.
      KeyboardInterrupt: Ctrl-C or SIGTERM came; the workers have stopped.
    """
    from aromni_jax.prepare.corpus import plan_offsets

    todo = list(plan_offsets(job))
    if not todo:
        return
    with NotedSignals() as signals:
        try:
            _run_noting(signals, job, counts, todo, options, progress)
        except Exception:  # also what the workers say when they were told to stop
            if not signals.name:
                raise
        if signals.name:
            raise KeyboardInterrupt(signals.name)


def _run_noting(
    signals: NotedSignals,
    job: Job,
    counts: Sequence[int],
    todo: Sequence[tuple[int, int]],
    options: Sequence[str],
    progress: bool,
) -> None:
    job.stopping.unlink(missing_ok=True)  # of an earlier call
    beam, pipeline_options = _load_beam()
    from aromni_jax.prepare.beam_shards import MakeShards

    # Raised at once, an interrupt would come anywhere in Beam, whose callbacks drop it: so it is noted, and told. But
    # workers in other processes hear a Ctrl-C themselves, and end, or are ended here; Beam would wait for them.
    elsewhere = any(word.startswith(("--runner", "--direct_running_mode")) for word in options)
    with _watched(signals, job, counts, [number for number, _ in todo], progress), _quiet():
        try:
            chosen = _parsed(pipeline_options, options)
            runner = None if any(word.startswith("--runner") for word in options) else _LOCAL
            hearing = signals.at_once() if elsewhere else contextlib.nullcontext()
            with hearing, beam.Pipeline(runner, options=chosen) as pipeline:
                _ = pipeline | beam.Create(todo) | beam.Reshuffle() | beam.ParDo(MakeShards(job))
        except UserError:
            raise
        except Exception as error:  # of any kind, and with a worker's own in its text
            raise UserError(_reason(error)) from error


def _load_beam() -> tuple[Any, Any]:
    try:
        with _quiet():
            import apache_beam
            from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"preparing media takes Apache Beam ({error}): install it with pip install 'aromni_jax[beam]'"
        ) from None
    return apache_beam, PipelineOptions


def _parsed(pipeline_options: Any, options: Sequence[str]) -> Any:
    """The options of the pipeline; UserError for a value that cannot be, where Beam would print its help and exit."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            chosen = pipeline_options(list(options))
            chosen.get_all_options()
    except SystemExit:
        raise UserError(f"--beam {' '.join(options)}: {said.getvalue().strip().rpartition('error: ')[2]}") from None
    return chosen


def _reason(error: Exception) -> str:
    """The worker's own words, if it had any, without Beam's traceback."""
    text = str(error)
    told = re.search(r"UserError: (.*?)(?: \[while running|\n|$)", text)
    if told:
        return told[1]
    lines = [line for line in text.strip().splitlines() if line.strip()] or [type(error).__name__]
    return f"the pipeline failed: {lines[-1].strip()}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Beam's warnings of what is not installed, and its tracebacks of what the error says already."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _watched(
    signals: NotedSignals, job: Job, counts: Sequence[int], todo: Sequence[int], progress: bool
) -> Iterator[None]:
    """A bar of what is done, seen from the shards that appear, and word to the workers: the same for every runner."""
    known = all(counts)
    sizes = counts if known else [1] * len(counts)
    waiting, ended, told = set(todo), threading.Event(), math.inf

    def look() -> None:
        nonlocal told
        for number in [number for number in waiting if job.shard(number).is_dir()]:
            waiting.discard(number)
            bar.update(sizes[number])
        if signals.name:
            with contextlib.suppress(OSError):
                job.stopping.touch()
            told = min(told, time.monotonic())
            if time.monotonic() >= told + _GRACE_SECONDS:
                _end_workers()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            look()

    with progress_bar(sum(sizes), "items" if known else "shards", progress) as bar, _without_tracebacks(signals):
        bar.update(sum(sizes) - sum(sizes[number] for number in todo))
        bar.unpause()  # the rate is that of this call
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            look()
            while signals.name and (waits := [t for t in threading.enumerate() if t.name == _WAITS_FOR_WORKER]):
                _end_workers()  # also one that was being started when the signal came, of which Beam knows nothing
                waits[0].join(_POLL_SECONDS)


@contextlib.contextmanager
def _without_tracebacks(signals: NotedSignals) -> Iterator[None]:
    """Of Beam's threads, which lose their workers after a signal."""
    hook = threading.excepthook
    threading.excepthook = lambda args: None if signals.name else hook(args)
    try:
        yield
    finally:
        threading.excepthook = hook


def _end_workers() -> None:
    """SIGTERM to Beam's worker processes below this one: one that has not yet connected would wait, and Beam for it.

    Without /proc, as on macOS, nothing is done.
    """
    parents, workers = {}, []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is over, or somebody else's
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if _WORKER in (folder / "cmdline").read_bytes().split(b"\0"):
                workers.append(int(folder.name))
    for worker in workers:
        family = [worker]  # and the shells that started it, but never such a shell alone: its worker would stay
        while family[-1] in parents and family[-1] != os.getpid():
            family.append(parents[family[-1]])
        if family.pop() == os.getpid():
            for process in reversed(family):  # a shell that outlives its worker says so
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGTERM)
