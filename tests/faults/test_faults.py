"""What can go wrong while a run trains: each is done to a real one from outside, then the same command is given again.

`make test-faults` runs these and writes the table.
"""

import os
import resource
import signal
import subprocess
import time

import pytest

from aromni_jax import data as pipeline
from aromni_jax import store
from aromni_jax.config import load_config
from aromni_jax.training import read_log
from aromni_jax.vocabulary import task_id
from tests.faults import runs
from tests.faults.slow_reads import slow_reads
from tests.training.small_run import VOCABULARY
from tests.training.test_checkpoints import largest_file

pytestmark = pytest.mark.faults
EQUAL = "all; the end is equal"


def went_on(again, step=150):
    """The step that a run went on from, as it says."""
    (line,) = (line for line in again.lines if line.startswith("resumed "))
    assert line.endswith(f"at step {step} of {runs.STEPS}"), line
    return f"checkpoint {step}; the end is equal"


def test_killed_in_a_step(half, straight, data, tmp_path, note):
    run = runs.copy(half, tmp_path / "run")
    again = runs.finish(run, data)
    runs.assert_same(run, straight)
    note("kill -9 in a step", "", went_on(again, store.complete_steps(half)[-1]), again)


def test_killed_while_saving(straight, data, tmp_path, note):
    for attempt in range(5):  # it may be done before we look
        run = tmp_path / str(attempt)
        with runs.training(run, data) as killed:
            killed.reach(10)
            folder = run / store.CHECKPOINTS
            while not store.complete_steps(run) or not list(folder.glob("[0-9]*.orbax-checkpoint-tmp*")):
                assert killed.process.poll() is None
            killed.kill()
        if partial := list(folder.glob("[0-9]*.orbax-checkpoint-tmp*")):
            break
    step = int(partial[0].name.split(".")[0])
    before = store.complete_steps(run)
    assert before and step not in before
    again = runs.finish(run, data)
    runs.assert_same(run, straight)
    assert not list(folder.glob("*tmp*"))
    note("kill -9 while a checkpoint is written", "", went_on(again, before[-1]), again)


def test_sigterm(straight, data, tmp_path, note):
    run = tmp_path / "run"
    with runs.training(run, data) as stopped:
        stopped.reach(170)
        stopped.process.send_signal(signal.SIGTERM)
        assert stopped.end() == 130
    assert stopped.seconds_to_end < 20, "a machine that is taken away waits for 30 s"
    said = stopped.lines[-1]
    saved = store.complete_steps(run)[-1]
    assert said == f"stopped by SIGTERM, saved step {saved}: the same command goes on from there"
    again = runs.finish(run, data)
    assert runs.checksums(run) == runs.checksums(straight)
    note("SIGTERM", f"{said} ({stopped.seconds_to_end:.1f} s after the signal)", went_on(again, saved), again)


def test_a_damaged_newest_checkpoint(half, straight, data, tmp_path, note):
    run = runs.copy(half, tmp_path / "run")
    older, newest = store.complete_steps(run)[-2:]
    file = largest_file(run / store.CHECKPOINTS / str(newest) / store.PARAMS)
    os.truncate(file, file.stat().st_size // 2)
    again = runs.finish(run, data)
    runs.assert_same(run, straight)
    (said,) = (line for line in again.lines if line.startswith("warning: "))
    assert "falling back to an older checkpoint" in said
    assert (run / store.CHECKPOINTS / f"damaged-{newest}").is_dir()
    note("newest checkpoint damaged", said, went_on(again, older), again)


def fails(run, data, *settings):
    """Exit code 1, and the one line of it."""
    with runs.training(run, data, *settings) as failed:
        assert failed.end() == 1
    assert failed.last_error.startswith("aromni: ") and "Traceback" not in failed.errors, failed.errors
    return failed.last_error


@pytest.fixture
def own_data(data, tmp_path):
    """A copy of the data set, to be damaged."""
    return runs.copy(data, tmp_path / "data")


def test_a_record_file_cut_off(half, straight, data, own_data, tmp_path, note):
    run = runs.copy(half, tmp_path / "run")
    os.truncate(own_data / runs.ROWS, 1_000_000)
    said = fails(run, own_data)
    assert f"{runs.ROWS}: cut off or no ArrayRecord file" in said
    again = runs.finish(run, data)
    runs.assert_same(run, straight)
    note("record file cut off", said, went_on(again, store.complete_steps(half)[-1]), again)


def test_a_lost_shard(half, straight, data, own_data, tmp_path, note):
    run = runs.copy(half, tmp_path / "run")
    (own_data / runs.ROWS).unlink()
    said = fails(run, own_data)
    assert f"{runs.ROWS}: no such file" in said
    again = runs.finish(run, data)
    runs.assert_same(run, straight)
    note("record file deleted", said, went_on(again, store.complete_steps(half)[-1]), again)


def test_a_bad_record(straight, data, own_data, tmp_path, note):
    run, skipping = tmp_path / "run", tmp_path / "skipping"
    with open(own_data / runs.ROWS, "r+b") as file:  # about eight of the 3,200 rows that the run reads
        file.seek(300_000)
        file.write(bytes(6000))
    said = fails(run, own_data)
    assert f"{runs.ROWS} record " in said and "damaged" in said
    skipped = runs.finish(skipping, own_data, "data.on_bad_record=skip").errors.count("skipped: ")
    assert skipped > 0
    kept = store.complete_steps(run)
    again = runs.finish(run, data)
    runs.assert_same(run, straight)
    survived = went_on(again, kept[-1]) if kept else EQUAL
    note("bad record", said, f"{survived}; with on_bad_record=skip it ends by itself, {skipped} named", again)


def limited(training, file_bytes):
    """From now on no file of the process grows beyond this: what a write to a full disk meets."""
    resource.prlimit(training.pid, resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def test_a_full_disk_at_a_checkpoint(straight, data, tmp_path, note):
    run = tmp_path / "run"
    with runs.training(run, data) as full:
        limited(full.reach(60).saved(50), 120_000)
        assert full.end() == 1
    said, kept = full.last_error, store.complete_steps(run)
    assert f"could not be written (File too large); the one of step {kept[-1]} is intact" in said
    assert [path.name for path in (run / store.CHECKPOINTS).iterdir()] == [str(step) for step in kept]
    again = runs.finish(run, data)
    runs.assert_same(run, straight)
    note("disk full at a checkpoint", said, went_on(again, kept[-1]), again)


def test_a_full_disk_at_the_log(straight, data, tmp_path, note):
    run = tmp_path / "run"
    with runs.training(run, data, "train.checkpoint_every=1000") as full:
        log = full.reach(60).run / "metrics.jsonl"
        limited(full, log.stat().st_size + 100)
        assert full.end() == 1
    said = full.last_error
    assert "metrics.jsonl (File too large); check the folder and the free space" in said
    assert log.read_text().count("\n") == len(read_log(log))
    again = runs.finish(run, data)
    runs.assert_same(run, straight)
    note("disk full at the log", said, "no checkpoint yet: from the start, the end is equal", again)


def test_batches_without_a_finite_loss(data, tmp_path, note):
    """A weight that overflows float32, of a task that some batches hold: those give no number."""
    bad = f'loss.response_weights={{"{runs.RARE}": 3e38}}'
    run = load_config(str(runs.ROOT / runs.CONFIG), [f"data.path={data}", bad])
    batches = pipeline.batches(run.data, run.loss, VOCABULARY)
    expected = sum(bool((next(batches).task_ids == task_id(runs.RARE)).any()) for _ in range(runs.STEPS))
    assert 1 < expected < 100
    again = runs.finish(tmp_path / "run", data, bad, "train.max_skipped_steps=100")
    log = [line for line in read_log(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert log[-1]["skipped_steps"] == expected and all(line["loss"] > 0 for line in log)
    said = fails(tmp_path / "strict", data, bad, "train.max_skipped_steps=1")
    assert "2 steps had a loss or gradient that is not finite (train.max_skipped_steps is 1)" in said
    survived = f"{expected} of 400 steps are skipped and counted, the others train"
    note("batches whose loss is not finite", said + " (else nothing)", survived, again)


def test_a_slow_reader(straight, data, tmp_path, note):
    run = tmp_path / "run"
    with runs.training(run, data) as slow:
        slow.reach(60)
        with slow_reads(slow.pid, data / runs.ROWS, 0.2):
            said = slow.until("^note: .* spent waiting for data")
        assert slow.end() == 0, slow.errors
    assert said.rstrip().endswith("s)") and f"slowest to read: {data / runs.ROWS}" in said
    runs.assert_same(run, straight)
    note("slow reader", said, EQUAL + "; it is waited for", slow)


def test_a_hung_reader(straight, data, tmp_path, note):
    run = tmp_path / "run"
    with runs.training(run, data, "data.timeout_seconds=3") as hung:
        hung.reach(60)
        with slow_reads(hung.pid, data / runs.ROWS, 1000):
            start = time.monotonic()
            hung.until(None)
            seconds = time.monotonic() - start
        assert hung.end() == 1
    said = hung.last_error
    assert f"no data for 3 s: {data / runs.ROWS} record " in said and seconds < 30
    kept = store.complete_steps(run)
    again = runs.finish(run, data)
    runs.assert_same(run, straight)
    note("hung reader", said, went_on(again, kept[-1]), again)


def test_a_supervisor_starts_it_again(straight, data, tmp_path, note):
    run = tmp_path / "run"
    with runs.training(run, data, command=[runs.ROOT / "launch/local.sh"], AROMNI_RESTART_PAUSE="0") as supervised:
        supervised.reach(170)
        (pid,) = children(supervised.pid, "aromni_jax.cli.main")
        os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        assert supervised.until("^step "), supervised.end()
        supervised.first_step = time.monotonic() - start
        assert supervised.end() == 0, supervised.errors
    said = supervised.last_error
    assert "exit code 137" in said and "again in 0 s (1 of 5)" in said
    runs.assert_same(run, straight)
    note("kill -9 under a supervisor", said, "its checkpoint, without a hand; the end is equal", supervised)


def children(pid, word):
    """Descendants of a process whose command line holds the word."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in found.splitlines()}

    def below(child):
        while child and child != pid:
            child = parents.get(child, 0)
        return child == pid

    return [int(line.split()[0]) for line in found.splitlines() if word in line and below(int(line.split()[0]))]
