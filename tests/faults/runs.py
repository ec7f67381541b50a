"""`aromni train` as a process of its own: to be watched, disturbed, started again, and compared with one left alone."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import numpy as np

from aromni_jax import store
from aromni_jax.data.files import SUFFIX, RecordFile, RecordWriter
from aromni_jax.data.rows import Row
from aromni_jax.training import read_log
from aromni_jax.vocabulary import task_id
from tests.training import small_run

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "tests/training/small_config.py:long"
ROWS = f"train.rows{SUFFIX}"
STEPS, EVERY = 400, 50
RARE = "chat"
CLOCKS = re.compile("second|goodput|mfu")


def write_data(folder):
    """The data set of the other tests, its rows again and again, in other words: too many for a reader's buffer.

    One row in 256 is of a task of its own, in another order of tokens each time, so that the file stays long.
    """
    small_run.write_data(folder)
    rows = RecordFile(folder / ROWS)
    made = [Row.from_bytes(rows[i], small_run.VOCABULARY) for i in range(len(rows))]
    text, rng = small_run.VOCABULARY.text, np.random.default_rng(0)
    with RecordWriter(folder / ROWS) as writer:
        for number in range(56_000):
            row = made[number % len(made)]
            tokens, tasks = row.tokens.copy(), row.task_ids.copy()
            words = (tokens >= text.start) & (tokens < text.stop)
            tokens[words] = rng.integers(text.start, text.stop, words.sum())
            if number % 256 == 0:
                tasks[row.segment_ids > 0] = task_id(RARE)
            writer.write(Row(tokens, row.segment_ids, row.roles, tasks).to_bytes())
    assert (folder / ROWS).stat().st_size > 2**21
    return folder


TRAIN = (sys.executable, "-u", "-m", "aromni_jax.cli.main", "train")
RECORDED = (sys.executable, "-u", "-m", "tests.faults.recorded")


class Training:
    """One `aromni train` (or a script that starts it), reading its output while it runs.

    Attributes:
      lines: of its output so far; errors: what it said on stderr, when it has ended.
      first_step: seconds from the start to the first line of a step.
    """

    def __init__(self, run, data, *settings, command=TRAIN, name="stderr", **environment):
        self.run, self.lines, self.errors, self.first_step = run, [], "", None
        words = ["--config", CONFIG, "--run-dir", run, "--set", f"data.path={data}", *settings]
        fast = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        fast |= {"JAX_COMPILATION_CACHE_DIR": str(data.parent / "compiled"), "AROMNI_PYTHON": sys.executable}
        fast |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self._errors_file = run.with_name(f"{run.name}.{name}")
        run.parent.mkdir(parents=True, exist_ok=True)
        self._start = time.monotonic()
        with open(self._errors_file, "wb") as errors:
            self.process = subprocess.Popen(
                [str(word) for word in [*command, *words]], cwd=ROOT, env=os.environ | fast | environment,
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self.pid = self.process.pid

    def until(self, pattern):
        """Read lines until one matches; that line."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if self.first_step is None and line.startswith("step "):
                self.first_step = time.monotonic() - self._start
            if pattern and re.search(pattern, line):
                return line
        return None

    def reach(self, step):
        """Read on to the log line of this step."""
        assert self.until(rf"^step {step}/"), self.end()
        return self

    def saved(self, step):
        """Wait for the checkpoint of this step, or a later one, to be whole: a save takes as long as it takes."""
        while (store.complete_steps(self.run) or [0])[-1] < step:
            assert self.process.poll() is None, self.end()
            time.sleep(0.01)
        return self

    def end(self, timeout=200):
        """Wait for its end; the exit code."""
        timer = time.monotonic()
        self.until(None)
        code = self.process.wait(timeout)
        self.seconds_to_end = time.monotonic() - timer
        self.errors = self._errors_file.read_text()
        return code

    def kill(self):
        """-9, and what is left of it."""
        self.process.kill()
        assert self.end() == -9

    @property
    def last_error(self):
        """The last line on stderr."""
        return (self.errors.splitlines() or [""])[-1]


@contextlib.contextmanager
def training(*words, **more):
    """A `Training` that does not outlive the test."""
    started = Training(*words, **more)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()
        started.process.stdout.close()


def finish(run, data, *settings, **more):
    """Start (again), to the end; the `Training`."""
    with training(run, data, *settings, **more) as again:
        assert again.end() == 0, again.errors
    assert "Traceback" not in again.errors, again.errors
    return again


@contextlib.contextmanager
def processes(count, run, data, *settings, recorded=()):
    """So many processes as one run, of a device each; what each reads is written to its file of `recorded`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        started = []
        for index in range(count):
            words = ["--coordinator", address, "--processes", count, "--process-id", index]
            command = [*RECORDED, recorded[index], "train"] if recorded else TRAIN
            one = training(run, data, *settings, command=[*command, *words], name=f"stderr-{index}")
            started.append(stack.enter_context(one))
        yield started


def copy(run, to):
    """The run folder as it lies there, under another name."""
    shutil.copytree(run, to)
    return to


def checksums(run, step=STEPS):
    """Of all arrays of the last checkpoint, optimiser included."""
    last = run / store.CHECKPOINTS / str(step) / store.METADATA / store.METADATA
    return json.loads(last.read_text())["checksums"]


def figures(run):
    """The log without what depends on the clock: steps, losses, tokens."""
    lines = read_log(run / "metrics.jsonl")
    assert (run / "metrics.jsonl").read_text().count("\n") == len(lines), "a half line"
    return [{name: value for name, value in line.items() if not CLOCKS.search(name)} for line in lines]


def assert_same(run, straight):
    """The same parameters and optimiser state, bit for bit; the same log, each step once."""
    assert checksums(run) == checksums(straight)
    assert figures(run) == figures(straight)
