"""The notebooks, cell by cell in plain Python, with their smallest settings."""

import json
import pathlib
import re
import sys
import types

import flax.nnx  # noqa: F401  # before the pretended IPython: it looks for a real one
import jax
import pytest

NOTEBOOKS = pathlib.Path(__file__).parents[2] / "notebooks"
NAMES = ["generate", "load_weights", "train_small"]


def cells(name):
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]


class Audio:
    """Stands for the player of a notebook."""

    def __init__(self, wave, rate):
        assert wave.ndim == 1 and len(wave) and rate == 16_000


def executed(name, folder, monkeypatch):
    """Run all code cells in the folder; what they left, and the kinds of things they displayed."""
    shown = []
    display = types.SimpleNamespace(Audio=Audio, display=lambda thing: shown.append(type(thing).__name__))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("AROMNI_NOTEBOOK", "tiny")
    monkeypatch.chdir(folder)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb, cell {number}", "exec"), names)
    return names, shown


def test_all_notebooks_are_known():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.fixture(autouse=True)
def quick_compilation():
    """Nothing here is about speed."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_stored_but_the_cells(name):
    made = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert made and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in made)
    assert len({cell["id"] for cell in cells(name)}) == len(cells(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_installs_only_what_is_missing(name, tmp_path, monkeypatch):
    first = "".join(next(cell for cell in cells(name) if cell["cell_type"] == "code")["source"])
    assert first == "".join(next(cell for cell in cells(NAMES[0]) if cell["cell_type"] == "code")["source"])
    calls = []
    monkeypatch.setattr("subprocess.run", lambda command, check: calls.append(command))
    exec(first, {})
    assert calls == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(NOTEBOOKS)
    exec(first, {})
    assert calls[0][1:5] == ["-m", "pip", "install", "--quiet"]
    assert re.match(rf"{re.escape(str(NOTEBOOKS.parent))}(\[tpu\])?$", calls[0][5])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="set REPOSITORY to the git URL"):
        exec(first, {})
    exec(first.replace('REPOSITORY = ""', 'REPOSITORY = "https://host/it.git"'), {})
    assert re.fullmatch(r"aromni_jax(\[tpu\])? @ git\+https://host/it.git", calls[1][5])


def test_generate(tmp_path, monkeypatch, capsys):
    names, shown = executed("generate", tmp_path, monkeypatch)
    assert shown[:2] == ["Audio", "Image"]
    assert names["heard"] == names["NUMBERS"] == ["four two"]
    assert "TurnDone" in capsys.readouterr().out and names["media"].text


def test_load_weights(tmp_path, monkeypatch, capsys):
    executed("load_weights", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "norm order: swin" in printed and "largest difference: 0.0" in printed
    assert (tmp_path / "runs/notebook_hf/config.json").exists()


@pytest.mark.slow
def test_train_small(tmp_path, monkeypatch, capsys):
    names, shown = executed("train_small", tmp_path, monkeypatch)
    assert int(names["result"].state.step) == 3 and "Image" in shown
    assert "eval 3 text" in capsys.readouterr().out
