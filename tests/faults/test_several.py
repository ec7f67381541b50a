"""The same with several real processes: as one run, killed, stopped, hung, and gone on with by another number of them.

`make test-faults` runs these too.
"""

import itertools
import json
import os
import signal
import time

import pytest

from aromni_jax import data as pipeline
from aromni_jax import store
from aromni_jax.config import load_config
from tests.faults import runs
from tests.faults.numbered import COUNT, numbers, write_numbers
from tests.faults.slow_reads import slow_reads
from tests.training.small_run import VOCABULARY

pytestmark = pytest.mark.faults
STEPS = 40
# A small rate: at a large one, differences of rounding grow tenfold every five steps (1e-7 at step 18, 4e-3 at 40).
SHORT = (f"train.steps={STEPS}", "train.checkpoint_every=10", "train.log_every=2", "optimizer.peak_lr=1e-3")


def ended(started, codes):
    """Wait for all; their exit codes are these."""
    found = [one.end() for one in started]
    assert found == list(codes), [one.errors[-2000:] for one in started]


def finish(count, run, data, *settings):
    """Start (again) with so many processes, to the end; the first one."""
    with runs.processes(count, run, data, *settings) as started:
        ended(started, [0] * count)
    return started[0]


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """A run of two processes that nothing happened to."""
    run = tmp_path_factory.mktemp("pair") / "run"
    finish(2, run, data, *SHORT)
    return run


def close(one, other, tolerance):
    """The same steps; the same losses up to rounding."""
    found, wanted = ([(line["step"], line["kind"], line["loss"]) for line in runs.figures(run)] for run in (one, other))
    assert [line[:2] for line in found] == [line[:2] for line in wanted]
    assert [line[2] for line in found] == pytest.approx([line[2] for line in wanted], rel=tolerance)


def test_two_and_four_train_as_one(pair, data, tmp_path):
    runs.finish(tmp_path / "one", data, *SHORT)
    four = finish(4, tmp_path / "four", data, *SHORT, "train.sample_every=20")
    assert len([line for line in four.lines if " samples in " in line]) == 2
    assert sorted(path.name for path in (tmp_path / "four/samples").iterdir()) == ["0000020", "0000040"]
    close(pair, tmp_path / "one", 1e-4)
    close(tmp_path / "four", tmp_path / "one", 1e-4)


def test_two_take_hundreds_of_steps(data, tmp_path):
    """If XLA's CPU runtime may mix up collectives, it does so within some hundred steps, and both stand still."""
    finish(2, tmp_path / "run", data, "train.log_every=100")


@pytest.mark.parametrize("axis", ["context", "tensor"])
def test_two_that_share_every_row_train_as_one(data, tmp_path, axis):
    settings = (*SHORT, "train.steps=10")
    runs.finish(tmp_path / "one", data, *settings)
    finish(2, tmp_path / "two", data, *settings, "mesh.fsdp=1", f"mesh.{axis}=2")
    close(tmp_path / "two", tmp_path / "one", 1e-4)


def test_one_of_two_killed_in_a_step(pair, data, tmp_path, note):
    run = tmp_path / "run"
    with runs.processes(2, run, data, *SHORT) as (first, second):
        first.reach(24)
        second.process.kill()
        start = time.monotonic()
        assert first.end() == 1
    assert time.monotonic() - start < 30
    said = first.last_error
    assert said.startswith("aromni: process 0 of 2 lost another one ("), first.errors
    again = finish(2, run, data, *SHORT)
    assert runs.checksums(run, STEPS) == runs.checksums(pair, STEPS)
    note("kill -9 of one of two processes in a step", said, "a checkpoint; the end is equal", again)


def test_one_of_two_killed_while_saving(pair, data, tmp_path, note):
    for attempt in range(5):  # it may be done before we look
        run = tmp_path / str(attempt)
        folder = run / store.CHECKPOINTS
        with runs.processes(2, run, data, *SHORT) as (first, second):
            first.reach(4)
            while not store.complete_steps(run) or not list(folder.glob("[0-9]*.orbax-checkpoint-tmp*")):
                assert first.process.poll() is None
            second.process.kill()
            partial = list(folder.glob("[0-9]*.orbax-checkpoint-tmp*"))
            assert first.end() != 0
        if partial:
            break
    kept = store.complete_steps(run)[-1]
    again = finish(2, run, data, *SHORT)
    assert runs.checksums(run, STEPS) == runs.checksums(pair, STEPS)
    ours = [line for line in first.errors.splitlines() if line.startswith("aromni: ")]
    said = ours[-1] if ours else "(JAX's own abort: another process is gone)"
    note("kill -9 of one of two while a checkpoint is written", said, f"checkpoint {kept}; the end is equal", again)


def test_a_hung_reader_of_one_ends_both(pair, data, tmp_path, note):
    run = tmp_path / "run"
    with runs.processes(2, run, data, "data.timeout_seconds=3", *SHORT) as (first, second):
        first.reach(14)
        with slow_reads(second.pid, data / runs.ROWS, 1000):
            start = time.monotonic()
            first.until(None)
            second.until(None)
            seconds = time.monotonic() - start
        ended((first, second), (1, 1))
    assert seconds < 40
    said = first.last_error
    assert said.startswith(f"aromni: process 1 of 2 failed: no data for 3 s: {data / runs.ROWS} record ")
    again = finish(2, run, data, *SHORT)
    assert runs.checksums(run, STEPS) == runs.checksums(pair, STEPS)
    note("hung reader of one of two processes", said, "a checkpoint; the end is equal", again)


def test_two_then_four_then_one(data, tmp_path, note):
    """Stopped twice, and gone on with by another number of processes: every example in its place, none twice."""
    numbered, run, read = write_numbers(tmp_path / "data"), tmp_path / "run", []
    settings = ["train.steps=60", "train.checkpoint_every=1000", "train.log_every=1", "optimizer.peak_lr=1e-3"]
    config = load_config(str(runs.ROOT / runs.CONFIG), [f"data.path={numbered}", *settings])
    graces = []
    for count, stop_at in ((2, 16), (4, 36), (1, None)):
        files = [tmp_path / f"{count}-{index}.jsonl" for index in range(count)]
        with runs.processes(count, run, numbered, *settings, recorded=files) as started:
            if stop_at:
                started[0].reach(stop_at)
                for one in started:
                    os.kill(one.pid, signal.SIGTERM)
                start = time.monotonic()
                ended(started, [130] * count)
                graces.append(time.monotonic() - start)
                assert "stopped by preemption, saved step" in started[0].lines[-1]
            else:
                ended(started, [0])
        lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        for parts in zip(*lines, strict=True):
            assert len({step for step, _ in parts}) == 1
            read.append([parts[0][0], list(itertools.chain(*(examples for _, examples in parts)))])
    assert max(graces) < 20, "a machine that is taken away waits for 30 s"
    batches = pipeline.batches(config.data, config.loss, VOCABULARY)
    assert read == [[step, numbers(next(batches))] for step in range(1, 61)]
    for epoch in (read[:30], read[30:]):
        assert sorted(itertools.chain(*(examples for _, examples in epoch))) == list(range(COUNT))
    runs.finish(tmp_path / "straight", numbered, *settings)
    close(run, tmp_path / "straight", 1e-4)
    note(
        "SIGTERM to 2 processes, gone on with by 4; SIGTERM; by 1",
        f"stopped by preemption, all within {max(graces):.1f} s",
        "every example read once an epoch, in the same order; losses equal up to rounding",
        started[0],
    )
