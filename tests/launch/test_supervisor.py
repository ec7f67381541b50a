"""launch/local.sh for real: restarts and signals with a pretended `aromni`, and two processes of ours."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from aromni_jax import store
from aromni_jax.config import load_config
from aromni_jax.training import read_log, train
from tests.launch.places import LAUNCH, ROOT, call
from tests.training import small_run

CONFIG = "tests/training/small_config.py"
# Each call takes the next exit code; "+" in front of it: a new checkpoint before.
PRETENDED = """#!/usr/bin/env bash
echo "$*" >>{folder}/called
code=$(sed -n "$(wc -l <{folder}/called)p" {folder}/codes)
if [[ $code == wait ]]; then
  trap 'sleep 0.3; echo saved; exit 130' TERM
  touch {folder}/waiting-$$
  while true; do sleep 0.05 & wait $!; done
fi
if [[ $code == +* ]]; then mkdir -p {folder}/run/checkpoints/$(wc -l <{folder}/called); fi
exit ${{code#+}}
"""


@pytest.fixture
def pretended(tmp_path):
    """`start(codes, *words)` runs local.sh with a program that ends with these codes; then `calls()` of it."""
    program = tmp_path / "python"
    program.write_text(PRETENDED.format(folder=tmp_path))
    program.chmod(0o755)
    environment = {"AROMNI_PYTHON": str(program), "AROMNI_RESTART_PAUSE": "0"}
    words = ["--config", "any.py", "--run-dir", str(tmp_path / "run")]

    def start(codes, *more, act=None):
        (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
        if act is None:
            return call("local.sh", *words, *more, **environment)
        process = subprocess.Popen(
            [LAUNCH / "local.sh", *words, *more], env=os.environ | environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_for(lambda: len(list(tmp_path.glob("waiting-*"))) == codes.split().count("wait"))
            act(process.pid)
            output, errors = process.communicate(timeout=200)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    return start, lambda: (tmp_path / "called").read_text().splitlines()


def wait_for(condition):
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_it_starts_again_until_the_run_is_done(pretended):
    start, calls = pretended
    done = start("1 137 0")
    assert done.returncode == 0 and len(calls()) == 3
    assert "exit code 137" in done.stderr and "again in 0 s (2 of 5)" in done.stderr


def test_it_gives_up_when_nothing_is_won(pretended):
    start, calls = pretended
    done = start("1 1 1 1", "--restarts", "2")
    assert done.returncode == 1 and len(calls()) == 3
    assert "given up after 3 failures without a new checkpoint (exit code 1); see" in done.stderr


def test_a_new_checkpoint_counts_as_success(pretended):
    start, calls = pretended
    done = start("1 1 +1 1 1 0", "--restarts", "3")
    assert done.returncode == 0 and len(calls()) == 6
    assert "checkpoint 3; again in 0 s (1 of 3)" in done.stderr


def test_bad_usage_is_not_tried_again(pretended):
    start, calls = pretended
    assert start("2").returncode == 2 and len(calls()) == 1


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(
    "act",
    [
        lambda pid: os.kill(pid, signal.SIGTERM),
        lambda pid: os.killpg(pid, signal.SIGINT),  # Ctrl-C
        lambda pid: os.killpg(pid, signal.SIGTERM),
    ],
)
def test_a_signal_goes_to_the_run_which_saves_and_that_is_the_end(pretended, act, processes):
    start, calls = pretended
    done = start("wait " * int(processes), "--processes", processes, act=act)
    assert (done.returncode, done.stdout, len(calls())) == (130, "saved\n", int(processes))


def test_announced_maintenance_saves_and_is_the_end(pretended, tmp_path, monkeypatch):
    start, calls = pretended
    curl = tmp_path / "bin" / "curl"
    curl.parent.mkdir()
    curl.write_text(
        f'#!/bin/sh\nfor last; do :; done\n[ "${{last%/maintenance-event}}" != "$last" ] && cat {tmp_path}/event\n'
    )
    curl.chmod(0o755)
    (tmp_path / "event").write_text("NONE")
    monkeypatch.setenv("PATH", f"{curl.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("AROMNI_MAINTENANCE_POLL", "0.1")

    def announce(pid):
        time.sleep(0.5)
        os.kill(pid, 0)  # it goes on while nothing is announced
        (tmp_path / "event").write_text("TERMINATE_ON_HOST_MAINTENANCE")

    done = start("wait", "--tpu", "v5e", act=announce)
    assert (done.returncode, done.stdout, len(calls())) == (130, "saved\n", 1)
    assert "is announced (TERMINATE_ON_HOST_MAINTENANCE): the run is saved and ended" in done.stderr


def test_one_that_hangs_when_another_was_killed_is_ended(pretended, tmp_path):
    """The one of two that is left would wait for ever."""
    _, calls = pretended
    short = (LAUNCH / "local.sh").read_text().replace("GRACE=20", "GRACE=0")
    assert "GRACE=0" in short
    (tmp_path / "common.sh").symlink_to(LAUNCH / "common.sh")
    (tmp_path / "local.sh").write_text(short)
    (tmp_path / "codes").write_text("wait\n137\n")
    done = subprocess.run(
        ["bash", tmp_path / "local.sh", "--config", "any.py", "--run-dir", tmp_path / "run", "--processes", "2",
         "--restarts", "0"],
        env=os.environ | {"AROMNI_PYTHON": str(tmp_path / "python")}, timeout=200,
    )  # fmt: skip
    assert done.returncode == 137 and len(calls()) == 2


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    return small_run.write_data(tmp_path_factory.mktemp("data"))


def local(run, settings, **environment):
    """Two real processes of one device each; a quick compilation is what counts here."""
    fast = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    words = ["--processes", "2", "--config", CONFIG, "--run-dir", str(run), "--set", *settings]
    return [LAUNCH / "local.sh", *words], os.environ | fast | {"AROMNI_PYTHON": sys.executable} | environment


def figures(folder):
    return [(line["step"], line["kind"], line["loss"]) for line in read_log(folder / "metrics.jsonl")]


def in_one_process(folder, settings):
    """The losses of the same run in this process."""
    jax.config.update("jax_disable_most_optimizations", True)
    train(load_config(CONFIG, settings), folder, say=lambda line: None)
    jax.config.update("jax_disable_most_optimizations", False)
    return figures(folder)


def same(found, expected):
    assert [line[:2] for line in found] == [line[:2] for line in expected]
    assert [line[2] for line in found] == pytest.approx([line[2] for line in expected], rel=1e-5)


def test_two_processes_train_as_one(data_path, tmp_path):
    settings = [f"data.path={data_path}"]
    command, environment = local(tmp_path / "run", settings)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    same(
        figures(tmp_path / "run"), in_one_process(tmp_path / "alone", settings)
    )  # each line once, though both processes know them
    assert store.complete_steps(tmp_path / "run") == [2, 4]
    logs = [(tmp_path / f"run/logs/worker-{index}.log").read_text() for index in range(2)]
    assert all("cpu, fsdp 2" in log and "step 4: held-out" in log for log in logs)
    assert "step 4: held-out" in done.stdout and "aromni_jax.cli.main train" in logs[1]


def pid_of(*words):
    """The process whose command line holds all of them."""
    for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        line = file.read_text(errors="replace")
        if line.endswith(words[-1]) and all(word in line for word in words):
            return int(file.parent.name)
    raise AssertionError(f"no process has {words}")


@pytest.mark.slow
def test_killed_processes_are_started_again_and_the_run_goes_on(data_path, tmp_path):
    run, settings = tmp_path / "run", [f"data.path={data_path}", "train.steps=60", "train.checkpoint_every=5"]
    command, environment = local(run, settings, AROMNI_RESTART_PAUSE="0")
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_for(lambda: store.complete_steps(run))
        os.kill(pid_of(f"{run}\0", "--process-id\x001\0"), signal.SIGKILL)
        errors = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 0 and "again in 0 s (1 of 5)" in errors
    assert "resumed" in (run / "logs/worker-1.log").read_text()
    same(figures(run), in_one_process(tmp_path / "alone", settings))
