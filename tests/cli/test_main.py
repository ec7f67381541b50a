import argparse
import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from aromni_jax.cli.main import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"aromni {name}" in capsys.readouterr().out.split("example:")[1]


@pytest.mark.parametrize("words", [[], ["fly"], ["train"], ["generate", "smell", "--input", "x", "--out", "y"]])
def test_bad_usage_is_exit_code_2(words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--config", "none.py", "--run-dir", "x"], "aromni: config none.py: no such file"),
        (["inspect", "no/such/thing"], "no/such/thing"),
        (["generate", "tts", "--model", "no/model", "--input", "one", "--out", "x"], "no/model"),
    ],
)
def test_failed_work_is_one_line_and_exit_code_1(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("aromni: ") and error.count("\n") == 1 and message in error


def test_debug_shows_the_traceback(tmp_path):
    from aromni_jax.errors import UserError

    with pytest.raises(UserError):
        main(["train", "--debug", "--config", "none.py", "--run-dir", str(tmp_path)])


def test_letters_that_the_terminal_does_not_know_are_told_all_the_same(tmp_path):
    code = (
        "from aromni_jax.cli import inspect\n"
        "from aromni_jax.cli.main import main\n"
        "inspect.run = lambda args: print('caf\\u00e9')\n"
        "main(['inspect', 'x'])\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], timeout=60, env=environment, capture_output=True, text=True)
    assert done.stdout == "caf\\xe9\n", done.stderr


def test_help_of_the_program_is_quick_and_imports_no_jax():
    code = (
        "import sys\n"
        "from aromni_jax.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    assert 'jax' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


_INTERRUPTED = """
import gc, os, pathlib, signal, sys, time
from aromni_jax.cli import inspect
from aromni_jax.cli.main import main
from aromni_jax.codecs.media import write_atomic

class Finaliser:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

def collection(phase, info):
    if phase == "start":
        gc.callbacks.remove(collection)
        Finaliser()

def write(path):
    path.write_text("half")
    time.sleep(3)
    path.write_text("whole")

def run(args):
    path = pathlib.Path(*args.path)
    if path.name == "finaliser":
        Finaliser()
    else:
        gc.callbacks.append(collection)
        gc.collect()
    write_atomic(path, write)
    return 0

inspect.run = run
print(*[main(["inspect", f"{sys.argv[1]}/{name}"]) for name in ("finaliser", "collection")])
"""


def test_one_ctrl_c_ends_any_command(tmp_path):
    """Also one that comes in a finaliser or in garbage collection, where Python drops it."""
    command = [sys.executable, "-c", _INTERRUPTED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("130 130\n", "aromni: interrupted\n" * 2)
    assert list(tmp_path.iterdir()) == []


def test_a_ctrl_c_while_jax_starts_waits_for_it(tmp_path, capsys, monkeypatch):
    """Inside of jaxlib's start it would be a segmentation fault."""
    started, load = [], importlib.import_module

    def slowly(name):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)
            started.append(name)
        return load(name)

    monkeypatch.setattr(importlib, "import_module", slowly)
    assert main(["inspect", str(tmp_path)]) == 130
    assert started == ["jax"] and capsys.readouterr().err == "aromni: interrupted\n"


def test_a_ctrl_c_before_a_command_begins(capsys, monkeypatch):
    def pressed(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", pressed)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "aromni: interrupted\n"
