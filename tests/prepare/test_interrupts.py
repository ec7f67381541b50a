"""A preparation that is interrupted says so, whenever the signal comes, and goes on when it is called again."""

import contextlib
import os
import pathlib
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


def test_a_progress_bar_is_not_interrupted(folder_set, tmp_path, monkeypatch):
    """Its lock would stay taken, and who closes it would wait for ever."""
    done = []

    class Bar:
        def update(self, count):
            os.kill(os.getpid(), signal.SIGTERM) if not done else None
            time.sleep(0)
            done.append(count)

        def unpause(self):
            pass

    monkeypatch.setattr(beam, "progress_bar", lambda *_: contextlib.nullcontext(Bar()))
    options = ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        prepare_corpus(open_source(str(folder_set[2]), Columns()), tmp_path / "data", **OPTIONS, beam_options=options)
    assert done and not (tmp_path / "data").exists()


def started(place, out, *options):
    """The command, in a process group of its own."""
    words = ["prepare", str(place), "--codecs", "numbers", "--sequence-length", "256", "--out", str(out), *options]
    child = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "ready\n"
    return child


def interrupted(place, out, after, *options):
    """(exit code, what it said) of the command whose process group gets a Ctrl-C, unless it has ended by then."""
    child = started(place, out, *options)
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


PROCESSES = ["--beam", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]


@pytest.mark.slow
def test_workers_in_other_processes(folder_set, tmp_path):
    """They hear the Ctrl-C as well, and end; who waits for them must not wait for ever."""
    place, out = folder_set[2], tmp_path / "data"
    codes, after = [], 4.0
    while 0 not in codes:
        code, said = interrupted(place, out, after, *PROCESSES)
        codes.append(code)
        if out.exists():
            break
        assert code == 130 and said.endswith("aromni: interrupted\n"), (after, said)
        after += 2
    assert 130 in codes and list(out.glob("manifest.json"))


def workers(session):
    """Beam's worker processes that were started in the session."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found += [folder.name] if b"sdk_worker_main" in (folder / "cmdline").read_bytes() else []
        except OSError:  # it is over
            pass
    return found


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_a_signal_to_who_started_the_workers_alone(folder_set, tmp_path):
    """They hear nothing of it, and one that has not yet connected would wait for ever."""
    place, out, whole = folder_set[2], tmp_path / "data", tmp_path / "whole"
    assert interrupted(place, whole, 120)[0] == 0
    for number, after in ((signal.SIGTERM, 0), (signal.SIGINT, 0.8), (signal.SIGTERM, 1.6)):
        child = started(place, out, *PROCESSES)
        try:
            while not workers(child.pid):
                assert child.poll() is None
                time.sleep(0.01)
            time.sleep(after)
            child.send_signal(number)
            said = child.communicate(timeout=60)[1]
            assert child.returncode == 130 and said.endswith("aromni: interrupted\n"), (after, said)
            assert "Traceback" not in said and "Terminated" not in said, (after, said)
            assert workers(child.pid) == [] and not out.exists()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    assert interrupted(place, out, 120, *PROCESSES)[0] == 0 and contents(out) == contents(whole)
