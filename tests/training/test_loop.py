"""Whole runs: resumed = uninterrupted, learning, stopping, compiling once, and errors before the first step."""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax import store
from aromni_jax.config import MeshConfig
from aromni_jax.convert import convert, open_source, save_model
from aromni_jax.errors import UserError
from aromni_jax.model import flatten, init_params, trained
from aromni_jax.training import Metrics, read_log, train
from aromni_jax.training.metrics import MetricsLog
from aromni_jax.training.monitor import Monitor
from aromni_jax.training.progress import Progress
from tests.training import small_run
from tests.training.test_checkpoints import assert_bit_equal

TIMINGS = {"tokens_per_second", "useful_tokens_per_second", "seconds_per_step", "data_wait_seconds", "goodput"}
TIMINGS |= {"window_seconds", "eval_seconds", "checkpoint_seconds"}


@pytest.fixture(scope="module")
def run(data_path):
    # A constant rate, so that runs of every length are the same program, compiled once for this file.
    return small_run.config(
        data_path, train__steps=6, train__log_every=1, train__checkpoint_every=3, optimizer__decay="constant"
    )


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    """Folder and result of six steps without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, start(run, folder)


def start(run, folder, say=lambda line: None):
    return train(run, folder, codebook_kc=small_run.CODEBOOK, say=say)


def losses(folder):
    """The log without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if key not in TIMINGS} for line in read_log(folder / "metrics.jsonl")
    ]


class Killed(Exception):
    """Stands for a machine that goes away: nothing of ours catches it."""


@pytest.mark.parametrize("packing", ["offline", "online"])
def test_killed_and_resumed_is_bit_equal_to_straight(run, straight, tmp_path, packing):
    run = small_run.changed(run, data__packing=packing)
    folder, result = straight if packing == "offline" else (tmp_path / "straight", None)
    result = result or start(run, folder)

    def die(line):
        if line.startswith("step 5/"):
            raise Killed

    with pytest.raises(Killed):
        start(run, tmp_path / "resumed", die)
    assert store.complete_steps(tmp_path / "resumed") == [3]
    lines = []
    resumed = start(run, tmp_path / "resumed", lines.append)
    assert any("resumed" in line and "at step 3 of 6" in line for line in lines)
    assert_bit_equal(resumed.state, result.state)
    assert losses(tmp_path / "resumed") == losses(folder)
    assert resumed.held_out == result.held_out


def test_the_log_names_every_modality_and_task(straight):
    folder, result = straight
    line = read_log(folder / "metrics.jsonl")[0]
    assert {"loss/text", "loss/image", "loss/speech", "loss/marker", "accuracy/task/text_to_image"} <= set(line)
    assert {"perceptual_loss", "grad_norm", "learning_rate", "tokens_per_second", "goodput"} <= set(line)
    assert line["kind"] == "train" and line["step"] == 1 and line["learning_rate"] == 0.0
    # 8 of the 16 held-out examples hold a picture of 4 tokens; in 4 of them it is the answer, and only answers count.
    assert result.held_out["tokens/image"] == 16.0


def test_a_finished_run_says_so_and_stays(run, straight):
    folder, result = straight
    before = (folder / "metrics.jsonl").read_text()
    again = start(run, folder)
    assert_bit_equal(again.state, result.state)
    assert (folder / "metrics.jsonl").read_text() == before
    with pytest.raises(UserError, match=rf"is at step {run.train.steps}, further than train.steps 3"):
        start(small_run.changed(run, train__steps=3), folder)


def test_loss_goes_down(run, tmp_path):
    longer = small_run.changed(run, train__steps=60, train__log_every=10, train__checkpoint_every=60)
    result = start(longer, tmp_path)
    log = [line for line in read_log(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    for name in ("loss", "loss/text", "loss/image", "loss/speech", "perceptual_loss"):
        assert log[-1][name] < 0.75 * log[0][name], name
    assert result.held_out["loss/image"] < 2.0  # ln 16 = 2.77 without learning


def test_no_compilation_after_the_first_steps(run, tmp_path):
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: events.append(name) if name.endswith("backend_compile_duration") else None
    )
    marks = {}

    def note(line):
        if match := re.match(r"step (\d+)/", line):
            marks[int(match[1])] = len(events)

    start(small_run.changed(run, train__steps=12, train__checkpoint_every=100), tmp_path, note)
    assert marks[2] > 0, "the listener hears nothing"
    assert marks[11] == marks[2]


def test_too_many_steps_that_are_not_finite_end_the_run(run, tmp_path):
    """What the step does with them is test_step's; here they are made up."""
    names = [field.name for field in dataclasses.fields(Metrics)]
    bad = Metrics(**{name: np.float32(name in ("steps", "skipped")) for name in names})
    run = small_run.changed(run, train__max_skipped_steps=2, train__log_every=100)
    progress = Progress(run.train.steps, 0, say=lambda line: None)
    monitor = Monitor(
        run, trained(run, small_run.VOCABULARY), MetricsLog(tmp_path, 0), progress, jax.devices(), skipped=1
    )
    monitor.observe(1, bad)
    with pytest.raises(UserError, match=r"3 steps had a loss or gradient that is not finite .*max_skipped_steps is 2"):
        monitor.observe(2, bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__vocab_size": 70}, "model.vocab_size is 70, but the vocabulary of .* has 68 ids"),
        ({"data__batch_size": 12}, "data.batch_size 12 is no multiple of 8"),
        (
            {"mesh__fsdp": 2, "mesh__context": 4, "data__sequence_length": 30},
            "data.sequence_length 30 is no multiple of mesh.context 4",
        ),
        ({"model__max_positions": 16}, "data.sequence_length 32 is more than model.max_positions 16"),
        ({"model__perceptual_dim": 5}, r"needs an image codebook of shape \(16, 5\).* is \(16, 8\)"),
        ({"data__sequence_length": 64}, "rows of 32 tokens, but data.sequence_length is 64"),
        ({"data__path": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_first_step(run, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        start(small_run.changed(run, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_one_line(data_path, tmp_path, compilation_cache, number):
    command = [sys.executable, "-u", "-m", "aromni_jax.cli.main", "train"]
    command += ["--config", "tests/training/small_config.py", "--run-dir", str(tmp_path / "run"), "--set"]
    command += [f"data.path={data_path}", "train.steps=100000", "train.checkpoint_every=1000"]
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": compilation_cache}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("step 3/"):
                process.send_signal(number)
                break
        started = time.monotonic()
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - started < 30
    last = rest.splitlines()[-1]
    stopped = re.fullmatch(rf"stopped by {number.name}, saved step (\d+): the same command goes on from there", last)
    assert stopped, (last, errors)
    assert "Traceback" not in errors
    assert store.complete_steps(tmp_path / "run") == [int(stopped[1])]


def test_another_mesh_goes_on_from_a_checkpoint(run, straight, tmp_path):
    """Eight devices in one arrangement, then in another: equal up to rounding."""
    first = small_run.changed(run, train__checkpoint_every=3)

    def die(line):
        if line.startswith("step 5/"):
            raise Killed

    with pytest.raises(Killed):
        start(first, tmp_path, die)
    other = dataclasses.replace(run, mesh=MeshConfig(replica=2, fsdp=2, tensor=2))
    result = start(other, tmp_path)
    kernel = result.state.params["layers"]["ffn"]["gate"]
    assert kernel.sharding.mesh.shape["tensor"] == 2
    np.testing.assert_allclose(kernel, straight[1].state.params["layers"]["ffn"]["gate"], rtol=0, atol=1e-3)


def test_a_run_begins_with_the_weights_of_another_model(run, tmp_path):
    """Of any format; here a Hugging Face folder without the projection, in another norm order and dtype."""
    donor = dataclasses.replace(run.model, norm_order="pre", perceptual_dim=0)
    params = init_params(donor, jax.random.key(7))
    save_model(tmp_path / "model", params, donor, small_run.VOCABULARY)
    with open_source(tmp_path / "model") as source:
        convert(source, tmp_path / "hf", "hf", dtype="bfloat16")
    lines = []
    still = {"optimizer__peak_lr": 0.0, "optimizer__weight_decay": 0.0, "train__init_from": str(tmp_path / "hf")}
    result = start(small_run.changed(run, train__steps=1, **still), tmp_path / "run", lines.append)
    found, wanted = flatten(result.state.params), flatten(params)
    assert found.keys() - wanted.keys() == {"perceptual/kernel", "perceptual/bias"}
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array.astype(jnp.bfloat16).astype(jnp.float32), err_msg=path)
        assert found[path].sharding.mesh.size == 8
    text = "\n".join(lines)
    assert "weights of" in text and "not there: perceptual/bias, perceptual/kernel" in text
    assert "norms were pre there, are swin here" in text
    # Going on is from the run's own checkpoint: what it began with may be gone.
    shutil.rmtree(tmp_path / "hf")
    assert int(start(small_run.changed(run, train__steps=2, **still), tmp_path / "run").state.step) == 2


def test_weights_of_another_shape_are_refused(run, tmp_path):
    donor = dataclasses.replace(run.model, ffn_dim=72)
    save_model(tmp_path / "model", init_params(donor, jax.random.key(7)), donor, small_run.VOCABULARY)
    with pytest.raises(UserError, match=r"model: model\.ffn_dim is 72 there, 64 here"):
        start(small_run.changed(run, train__init_from=str(tmp_path / "model")), tmp_path / "run")


def test_a_signal_in_the_last_step_changes_nothing(run, tmp_path):
    """It is the end anyway: the last evaluation and checkpoint are made, and the run counts as finished."""

    def signal_late(line):
        if line.startswith("step 5/"):  # said while step 6, the last, is on its way
            os.kill(os.getpid(), signal.SIGTERM)

    lines = []
    result = start(run, tmp_path, lambda line: (lines.append(line), signal_late(line)))
    assert result.stopped_by is None and result.held_out["loss"] > 0
    assert store.complete_steps(tmp_path)[-1] == 6
    assert not any("stopped by" in line for line in lines)
