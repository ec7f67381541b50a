"""Two real processes over loopback: what they tell each other, and how they end."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import pytest

from aromni_jax.errors import UserError
from aromni_jax.parallel import (
    check_shared,
    exchange,
    initialize_distributed,
    processes,
    same_everywhere,
    together,
)
from aromni_jax.training.checkpoints import Checkpoints
from tests.training import small_run
from tests.training.test_checkpoints import RUN, largest_file, random_state

ROOT = pathlib.Path(__file__).parents[2]


def seen_otherwise(runs):
    """Three checkpoints as two hosts see them: for the second one the last is missing and the one before cut off."""
    checkpoints = Checkpoints(runs / "0", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(random_state(small_run.one_device(), step), RUN, small_run.VOCABULARY, {"step": step})
    checkpoints.close()
    shutil.copytree(runs / "0", runs / "1")
    shutil.rmtree(runs / "1/checkpoints/3")
    file = largest_file(runs / "1/checkpoints/2/params")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What both processes found, and the last words of the first, which waits while the second fails."""
    shared, other, runs = (tmp_path_factory.mktemp(name) for name in ("shared", "other", "runs"))
    seen_otherwise(runs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A test does not want to wait as long as a pod may need.
    code = (
        "import aromni_jax.parallel.processes as p; p._SHARED_SECONDS = 0.5; p._LOOK_SECONDS = 0.1\n"
        "import aromni_jax.training.checkpoints as c; c._SEEN_SECONDS = 0.5\n"
        "from tests.parallel.pair import main\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", f"{code}main({port}, {index}, {str(shared)!r}, {str(other)!r}, {str(runs)!r})"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        (second, _), (first, last_words) = running[1].communicate(timeout=200), running[0].communicate(timeout=200)
    finally:
        for process in running:
            process.kill()
    assert not list(shared.iterdir()), "the mark was not taken away"
    assert [process.returncode for process in running] == [1, 1]
    return json.loads(first.splitlines()[-1]), json.loads(second.splitlines()[-1]), last_words


def test_they_are_one_run(pair):
    for found in pair[:2]:
        assert found["devices"] == found["processes"] == 2
        assert found["exchanged"] == [["a", "b"], ["c", "d"]]
        assert found["same"] is None and found["shared"] is None


def test_what_fails_on_one_fails_on_all(pair):
    first, second, _ = pair
    assert second["together"] == "nowhere: no such folder"
    assert first["together"] == "process 1 of 2, reading: nowhere: no such folder"


def test_a_difference_is_named(pair):
    for found in pair[:2]:
        assert found["not the same"].startswith("run: train.steps is 20 on process 0 and 21 on process 1: start every")


def test_they_go_on_from_the_same_checkpoint(pair):
    """The newest that both can read; what one of them lacks is set aside, with one line, and no wait is without end."""
    for found in pair[:2]:
        first, second = found["restored"]["lines"]
        assert found["restored"]["step"] == 1 and found["restored"]["saved"] == [1]
        assert first.startswith("warning: process 1 of 2: ") and "checkpoints/3/metadata" in first
        assert "checkpoints/2/params: cannot be read" in second
    assert pair[0]["restored"]["left"] == [1]


def test_a_folder_of_ones_own_is_refused(pair):
    first, second, _ = pair
    assert "is not the folder of process 0: give a --run-dir that all hosts share" in second["own"]
    assert first["own"].startswith("process 1 of 2, run folder: ")


def test_who_does_not_come_is_named(pair):
    assert pair[0]["alone"] == (
        "process 0 waited at 'nobody else': process 1 of 2 did not come within 0 s; their logs say why"
    )


def test_the_others_end_with_the_one_that_fails(pair):
    assert pair[2].splitlines()[-1] == "aromni: process 1 of 2 failed: disk full"


def test_who_loses_one_that_said_why_says_the_same(monkeypatch):
    """The network notices sooner than the look at what others have said, which is every few seconds."""

    class Client:
        def key_value_set(self, key, value):
            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS: key aromni/failed already exists.")

        def key_value_try_get(self, key):
            return "process 0 of 2 failed: no data for 3 s"

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    state = types.SimpleNamespace(client=Client(), process_id=1, num_processes=2)
    monkeypatch.setattr(processes.distributed, "global_state", state)
    monkeypatch.setattr(processes, "_exit_code", [])
    monkeypatch.setattr(processes, "_ending", threading.Event())
    with pytest.raises(UserError, match=r"^process 0 of 2 failed: no data for 3 s$"), processes.failing_alone():
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")


def test_an_error_without_words_is_told_by_its_name(monkeypatch):
    told = {}
    state = types.SimpleNamespace(
        process_id=1, num_processes=2, client=types.SimpleNamespace(key_value_set=told.__setitem__)
    )
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.distributed, "global_state", state)
    monkeypatch.setattr(processes, "_exit_code", [])
    monkeypatch.setattr(processes, "_ending", threading.Event())
    with pytest.raises(KeyboardInterrupt), processes.failing_alone():
        raise KeyboardInterrupt
    assert list(told.values()) == ["process 1 of 2 failed: KeyboardInterrupt"]


def test_alone_there_is_nothing_to_wait_for(tmp_path):
    assert exchange("letter", "a") == ["a"]
    same_everywhere("run", {"a": 1})
    check_shared(tmp_path)
    with pytest.raises(UserError, match=r"^as it is$"), together("reading"):
        raise UserError("as it is")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1234", 2, None), "--coordinator, --processes and --process-id go together"),
        (("host", 2, 0), "--coordinator host: expected host:port"),
        (("host:1234", 2, 2), "--process-id 2: must be 0 to 1 with --processes 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        initialize_distributed(*arguments)


def test_without_a_cluster_and_when_nobody_comes():
    """In a process of its own: nothing may have asked for devices yet, and its exit must not wait either."""
    code = """
from aromni_jax.errors import UserError
from aromni_jax.parallel import initialize_distributed
try:
    initialize_distributed()
except UserError as error:
    print(error)
initialize_distributed("127.0.0.1:1", 2, 1, timeout=1)
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and time.monotonic() - start < 150
    assert "this is no TPU pod, SLURM step, GKE job or Open MPI run that JAX knows; give --coordinator" in done.stdout
    assert "process 1 of 2: not all met at 127.0.0.1:1 within 1 s: start every one" in done.stderr
