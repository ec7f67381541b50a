"""A preparation that is interrupted says so, whenever the signal comes, and goes on when it is called again."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from aromni_jax.data.files import RecordWriter
from aromni_jax.prepare import beam, prepare_corpus
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.sources import open_source
from tests.prepare.test_resume import OPTIONS, contents

COMMAND = """
import sys
from aromni_jax.cli.main import main
print("ready", flush=True)
sys.exit(main(sys.argv[1:]))
"""
FIRST, STEP = 0.1, 0.13  # seconds


def swallowed(number):
    """A signal whose exception is lost, as one is that comes in a callback."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(0)
    except BaseException:
        pass


def test_one_signal_stops_the_workers(folder_set, tmp_path, monkeypatch):
    expected, _, place = folder_set
    out, work = tmp_path / "data", tmp_path / ".data.shards"
    handlers = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    written, write = [], RecordWriter.write

    def slowly(self, data):
        written.append(data)
        if len(written) == 15:
            swallowed(signal.SIGINT)
        if len(written) >= 15:
            time.sleep(0.1)
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", slowly)
        patch.setattr(beam, "_POLL_SECONDS", 0.01)
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            prepare_corpus(open_source(str(place), Columns()), out, **OPTIONS)
    assert 15 <= len(written) < 20, "of 24"
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == handlers
    done = {path.name: path.stat().st_mtime_ns for path in work.glob("[0-9]*")}
    assert 0 < len(done) < 3 and not out.exists() and not [*work.glob(".*")]
    prepare_corpus(open_source(str(place), Columns()), out, **OPTIONS)
    assert contents(out) == contents(expected)


def test_a_signal_that_came_too_late_for_the_workers_is_no_success(folder_set, tmp_path, monkeypatch):
    """All shards are made; the data set is not, before the next call."""
    expected, _, place = folder_set
    out, make = tmp_path / "data", beam._load_beam
    with monkeypatch.context() as patch:
        patch.setattr(beam, "_load_beam", lambda: swallowed(signal.SIGTERM) or make())
        patch.setattr(beam, "_POLL_SECONDS", 60)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            prepare_corpus(open_source(str(place), Columns()), out, **OPTIONS)
    assert not out.exists() and len([*(tmp_path / ".data.shards").glob("[0-9]*")]) == 3
    prepare_corpus(open_source(str(place), Columns()), out, **OPTIONS)
    assert contents(out) == contents(expected)


def interrupted(place, out, after, *options):
    """(exit code, what it said) of the command whose process group gets a Ctrl-C, unless it has ended by then."""
    words = ["prepare", str(place), "--codecs", "numbers", "--sequence-length", "256", "--out", str(out), *options]
    child = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "ready\n"
    try:
        child.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGINT)
    said = child.communicate(timeout=120)[1]
    return child.returncode, said


@pytest.mark.slow
def test_at_any_moment(folder_set, tmp_path):
    """A process, over and over, each time interrupted a little later, until it ends first."""
    place, out, whole = folder_set[2], tmp_path / "data", tmp_path / "whole"
    assert interrupted(place, whole, 120)[0] == 0
    codes, after = [], FIRST
    while 0 not in codes:
        code, said = interrupted(place, out, after)
        codes.append(code)
        if out.exists():  # all is done, and the process on its way out: Python hears no signal there
            assert contents(out) == contents(whole)
            shutil.rmtree(out)
        else:
            assert code == 130 and said.endswith("aromni: interrupted\n") and "Traceback" not in said, (after, said)
        after += STEP
    assert codes.count(130) > 10
    assert interrupted(place, out, 120)[0] == 0 and contents(out) == contents(whole)


@pytest.mark.slow
def test_workers_in_other_processes(folder_set, tmp_path):
    """They hear the Ctrl-C as well, and end; who waits for them must not wait for ever."""
    place, out = folder_set[2], tmp_path / "data"
    options = ["--beam", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    codes, after = [], 4.0
    while 0 not in codes:
        code, said = interrupted(place, out, after, *options)
        codes.append(code)
        if out.exists():
            break
        assert code == 130 and said.endswith("aromni: interrupted\n"), (after, said)
        after += 2
    assert 130 in codes and list(out.glob("manifest.json"))
