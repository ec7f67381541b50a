"""What a run shows of itself while it trains: boards, samples, a profiler window, its starts."""

import json
import struct
import sys
import types

import jax
import numpy as np
import PIL.Image
import pytest
from tensorboardX.proto.event_pb2 import Event

from aromni_jax.cli.main import main
from aromni_jax.errors import UserError
from aromni_jax.training import read_log, sampling, train
from aromni_jax.training.boards import TensorBoard, WeightsAndBiases
from aromni_jax.training.profile import Profile
from aromni_jax.training.progress import Clock, Progress
from tests.training import small_run

SHOWN = {
    "samples/chat/text": "# four <two>",
    "samples/text_to_image/image": PIL.Image.new("L", (4, 2), 200),
    "samples/text_to_speech/speech": (np.sin(np.arange(800) / 5).astype(np.float32), 16_000),
}


def raw_events(folder):
    """Every event of the files in a TensorBoard folder, in order."""
    for file in sorted(folder.glob("events*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += 12 + size + 4


def events(folder):
    """tag -> [(step, value)]; a value is a number, a text, or the bytes of a picture or sound."""
    found = {}
    for event in raw_events(folder):
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            shown = getattr(value, kind)
            if kind == "tensor":
                shown = shown.string_val[0].decode()
            elif kind in ("image", "audio"):
                shown = getattr(shown, f"encoded_{kind}_string")
            found.setdefault(value.tag, []).append((event.step, shown))
    return found


@pytest.fixture(scope="module")
def watched(data_path, tmp_path_factory):
    """Six steps with samples every two, of which the second time fails, and steps 3 and 4 under the profiler."""
    folder, lines, asked = tmp_path_factory.mktemp("watched"), [], []

    def sampler(params, step):
        asked.append((step, params["head"]["kernel"].sharding.mesh.size))
        if step == 4:
            raise RuntimeError("no room\nand pages of frames")
        return SHOWN

    run = small_run.config(data_path, train__sample_every=2, train__checkpoint_every=3, train__eval_every=3)
    run = small_run.changed(run, model__layers=1, optimizer__decay="constant")
    train(run, folder, codebook_kc=small_run.CODEBOOK, sampler=sampler, profile=(3, 4), say=lines.append)
    return folder, lines, asked


def test_one_of_several_processes_that_fails_alone_does_not_go_on(monkeypatch):
    """The others are in the middle of decoding, and wait for it; its next step would meet them there."""
    lines, met = [], []

    def apart(name):
        met.append((name, list(lines)))
        raise UserError("process 0 of 2 did not come")

    def sampler(params, step):
        raise MemoryError("here alone")

    monkeypatch.setattr(sampling, "exchange", apart)
    log, progress = types.SimpleNamespace(show=None), types.SimpleNamespace(line=lines.append)
    with pytest.raises(UserError, match="did not come"):
        sampling.take_samples(sampler, {}, 4, log, progress)
    assert met == [("samples", ["warning: step 4: no samples (MemoryError: here alone)"])]


def test_samples_come_in_step_on_the_parameters_in_place_and_a_failure_is_one_line(watched):
    folder, lines, asked = watched
    assert asked == [(2, 8), (4, 8), (6, 8)]
    assert [line for line in lines if "samples" in line and "step 4" in line] == [
        "warning: step 4: no samples (RuntimeError: no room)"
    ]
    assert any(line.startswith("step 6: 3 samples in ") for line in lines)
    shown = events(folder / "tensorboard")
    assert [step for step, _ in shown["samples/text_to_image/image"]] == [2, 6]
    assert shown["samples/text_to_image/image"][0][1].startswith(b"\x89PNG")
    assert shown["samples/text_to_speech/speech"][0][1].startswith(b"RIFF")
    assert shown["samples/chat/text/text_summary"][1] == (6, SHOWN["samples/chat/text"])


def test_log_and_tensorboard_have_the_held_out_loss_of_every_modality_and_task(watched):
    folder, _, _ = watched
    shown = events(folder / "tensorboard")
    held_out = [line for line in read_log(folder / "metrics.jsonl") if line["kind"] == "eval"]
    assert [line["step"] for line in held_out] == [3, 6]
    tasks = ("image_caption", "speech_to_text", "text_to_image", "text_to_speech")
    for name in ("text", "image", "speech", "marker", *(f"task/{task}" for task in tasks)):
        on_board = shown[f"eval/loss/{name}"]
        assert [step for step, _ in on_board] == [3, 6]
        assert [line[f"loss/{name}"] for line in held_out] == pytest.approx([value for _, value in on_board], rel=1e-6)
        assert f"train/loss/{name}" in shown


def test_every_log_line_says_where_the_time_went(watched):
    folder, lines, _ = watched
    log = [line for line in read_log(folder / "metrics.jsonl") if line["kind"] == "train"]
    for line in log:
        phases = sum(line.get(f"{name}_seconds", 0.0) for name in ("eval", "checkpoint", "samples", "first_samples"))
        phases += line.get("profile_seconds", 0.0)
        assert line["goodput"] == pytest.approx(1 - phases / line["window_seconds"], abs=0.01)
        assert 0 <= line["data_wait_seconds"] <= line["window_seconds"]
    assert all(log[1][f"{name}_seconds"] > 0 for name in ("profile", "first_samples", "eval", "checkpoint"))
    end = json.loads((folder / "history.jsonl").read_text().splitlines()[-1])
    assert end["kind"] == "end" and end["seconds"]["checkpoint"] > 0  # what comes after the last line is not lost
    assert any("data wait" in line and "goodput" in line for line in lines if line.startswith("step 2/"))


def test_the_profiler_traces_its_window_and_says_where(watched):
    folder, lines, _ = watched
    said = [line for line in lines if line.startswith("profile of steps 3:4: ")]
    (trace,) = folder.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    assert len(said) == 1 and str(trace) in said[0] and "ui.perfetto.dev" in said[0]
    assert list(folder.glob("profile/plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize("call", ["start_trace", "stop_trace"])
def test_a_profiler_that_fails_does_not_end_the_run(tmp_path, monkeypatch, call):
    def fail(*_, **__):
        raise OSError("No space left on device")

    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, fail if name == call else lambda *_, **__: None)
    lines = []
    profile = Profile(tmp_path, (1, 2), range(1, 5), Progress(4, 0, lines.append), Clock())
    for step in range(1, 5):
        profile.before(step, None)
        profile.after(step, None)
    profile.close()
    assert lines == ["warning: no profile (OSError: No space left on device)"]


def test_a_window_that_is_over_is_a_note(tmp_path):
    lines = []
    profile = Profile(tmp_path, (3, 4), range(5, 7), Progress(6, 4, lines.append), Clock())
    for step in (5, 6):
        profile.before(step, None)
        profile.after(step, None)
    profile.close()
    assert lines == ["note: no profile: steps 3:4 are none of the steps to come, 5:6"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("window", ["3", "0:2", "5:4", "a:b", "-1:2", "1:2:3"])
def test_a_bad_window_is_bad_usage(window, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", "x.py", "--run-dir", "y", f"--profile={window}"])
    assert caught.value.code == 2 and "expected FROM:TO" in capsys.readouterr().err


def test_starts_tell_machine_versions_and_what_a_restart_cost(data_path, tmp_path):
    class Killed(Exception):
        pass

    def die(line):
        if line.startswith("step 5/"):
            raise Killed

    run = small_run.config(data_path, train__checkpoint_every=3, train__log_every=1)
    run = small_run.changed(run, model__layers=1, optimizer__decay="constant")
    with pytest.raises(Killed):
        train(run, tmp_path, codebook_kc=small_run.CODEBOOK, say=die)
    train(run, tmp_path, codebook_kc=small_run.CODEBOOK, say=lambda line: None)
    train(run, tmp_path, codebook_kc=small_run.CODEBOOK, say=lambda line: None)  # finished: this is no start
    first, second, end = (json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines())
    assert (end["kind"], end["step"], end["stopped_by"]) == ("end", 6, None)
    assert (first["step"], first["reached_before"], first["lost_seconds"]) == (0, 0, 0)
    assert (second["step"], second["reached_before"]) == (3, 5) and second["lost_seconds"] > 0
    assert first["hardware"]["devices"] == "8 x cpu" and first["hardware"]["mesh"] == {"fsdp": 8}
    assert {"aromni_jax", "jax", "python"} <= set(first["versions"])
    assert first["parameters"]["total"] > 0 and first["seconds"]["compile"] > 0


class FakeRun:
    def __init__(self, options):
        self.options, self.logged, self.finished = options, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module that remembers what it is told."""
    module = types.ModuleType("wandb")
    module.runs = []
    module.init = lambda **options: module.runs.append(FakeRun(options)) or module.runs[-1]
    module.Html = module.Image = lambda value: value
    module.Audio = lambda value, sample_rate: (value, sample_rate)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_gets_numbers_and_samples_of_one_run(wandb, data_path, tmp_path):
    run = small_run.config(data_path, train__wandb="omni")
    for _ in range(2):  # gone on with: the same run there
        board = WeightsAndBiases(run, tmp_path)
        board.numbers(3, {"train/loss": 2.0})
        board.samples(4, SHOWN)
        board.close()
    first, second = wandb.runs
    assert first.options["id"] == second.options["id"] and first.options["resume"] == "allow"
    assert first.options["project"] == "omni" and first.options["config"] == run.to_dict()
    assert first.logged[0] == (3, {"train/loss": 2.0}) and first.finished
    step, values = first.logged[1]
    assert step == 4 and values["samples/chat/text"] == "<pre># four &lt;two&gt;</pre>"
    assert values["samples/text_to_speech/speech"][1] == 16_000


def test_weights_and_biases_that_cannot_start_is_one_line_before_anything_is_compiled(wandb, data_path, tmp_path):
    run = small_run.config(data_path, train__wandb="omni")

    def refuse(**options):
        raise OSError("api_key not configured\nuse wandb login")

    wandb.init = refuse
    lines = []
    with pytest.raises(UserError, match=r"^train\.wandb=omni: OSError: api_key not configured$"):
        train(run, tmp_path, codebook_kc=small_run.CODEBOOK, say=lines.append)
    assert not any("compiled" in line for line in lines)
    sys.modules["wandb"] = None
    with pytest.raises(UserError, match=r"train\.wandb=omni needs wandb: pip install"):
        WeightsAndBiases(run, tmp_path)


def test_what_is_written_again_replaces_what_tensorboard_had(tmp_path):
    for resume_step in (0, 2):
        board = TensorBoard(tmp_path, resume_step)
        for step in range(resume_step + 1, 5):
            board.numbers(step, {"loss": 1.0})
        board.close()
    assert [step for step, _ in events(tmp_path)["loss"]] == [1, 2, 3, 4, 3, 4]
    started = [event.step for event in raw_events(tmp_path) if event.HasField("session_log")]
    assert started == [1, 3]  # TensorBoard forgets from there on what an earlier file has
