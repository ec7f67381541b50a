"""The log of a run after a crash: whole lines, each step once, and what could not be written is said."""

import json
import struct

import pytest

from aromni_jax.errors import UserError
from aromni_jax.training import read_log
from aromni_jax.training.boards import TensorBoard
from aromni_jax.training.event_files import EventFiles
from aromni_jax.training.metrics import MetricsLog
from tests.full_disk import full_disk


def numbers(folder):
    """(step, value) of every scalar, as TensorBoard shows them: a start at step n hides what came before from n on."""
    from tensorboardX.proto.event_pb2 import Event

    shown = []
    for file in sorted(folder.glob("events.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                shown = [(step, value) for step, value in shown if step < event.step]
            shown += [(event.step, value.simple_value) for value in event.summary.value]
    return shown


def test_a_full_disk_leaves_whole_lines_and_one_error(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, "train", {"loss": 1.0})
    size = log.file.stat().st_size
    with full_disk(size + 10), pytest.raises(UserError, match=r"cannot write .*metrics.jsonl \(File too large\)"):
        log.write(2, "train", {"loss": 2.0})
    assert log.file.stat().st_size == size, "a part of the line is left"
    log.write(3, "train", {"loss": 3.0})
    assert [line["step"] for line in read_log(log.file)] == [1, 3]
    log.close()


def test_a_full_disk_does_not_hang_the_events(tmp_path):
    events = EventFiles(str(tmp_path), purge_step=1)
    events.add_scalar("loss", 1.0, 1)
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    for _ in range(20):  # more than a queue takes
        with (
            full_disk(size + 10),
            pytest.raises(UserError, match=r"cannot write .*events.out.tfevents.*File too large"),
        ):
            events.add_scalar("loss", 2.0, 2)
    events.add_scalar("loss", 3.0, 3)
    events.close()
    assert numbers(tmp_path) == [(1, 1.0), (3, 3.0)]


def test_a_killed_run_has_all_that_it_logged_and_each_step_once(tmp_path):
    killed = MetricsLog(tmp_path, 0, [TensorBoard(tmp_path / "tensorboard", 0)])
    for step in (1, 2, 3):
        killed.write(step, "train", {"loss": float(step)})  # it is never closed
    assert [step for step, _ in numbers(tmp_path / "tensorboard")] == [1, 2, 3]
    resumed = MetricsLog(tmp_path, 2, [TensorBoard(tmp_path / "tensorboard", 2)])
    for step in (3, 4):
        resumed.write(step, "train", {"loss": 10.0 * step})
    assert numbers(tmp_path / "tensorboard") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert [(line["step"], line["loss"]) for line in read_log(resumed.file)] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_what_a_crash_of_the_machine_tears_is_dropped_and_no_more(tmp_path):
    lines = [json.dumps({"step": step, "kind": "train"}) for step in (1, 2, 3, 4)]
    torn = lines[1][:9] + lines[2]  # half a line, and the next one behind it
    (tmp_path / "metrics.jsonl").write_bytes(f"{lines[0]}\n{torn}\n{lines[3]}\n".encode() + b"\x00\xff\x00")
    MetricsLog(tmp_path, 4).close()
    assert (tmp_path / "metrics.jsonl").read_text() == f"{lines[0]}\n{lines[3]}\n"


@pytest.mark.parametrize(
    "line", ["3", "[]", "{}", '{"step": "2", "kind": "train"}', '{"step": 2, "kind": 5}', "[" * 9999]
)
def test_a_line_that_somebody_has_edited_is_dropped(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "kind": "train"}}\n{line}\n{{"step": 3, "kind": "train"}}\n')
    log = MetricsLog(tmp_path, 2)
    assert [line["step"] for line in log.dropped] == [3]
    assert [line["step"] for line in read_log(log.file)] == [1]
