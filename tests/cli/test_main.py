import subprocess
import sys

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
