"""The house rules that a reader of DESIGN would check by hand: who imports whom, file sizes, what the core pulls in."""

import ast
import configparser
import glob
import pathlib
import subprocess
import sys

import pytest

import aromni_jax

ROOT = pathlib.Path(aromni_jax.__file__).parent
ANYONE = {"errors", "config", "vocabulary", "buckets"}
# Room -> rooms it may import beside itself and the four files above.
MAY_IMPORT = {
    "store": set(),
    "signals": set(),
    "tensorfile": set(),
    "torchfile": {"tensorfile"},
    "model": {"parallel"},
    "losses": {"parallel"},
    "parallel": set(),
    "worlds": set(),
    "data": {"store"},
    "codecs": {"store", "tensorfile", "torchfile", "worlds", "signals"},
    "prepare": {"codecs", "data", "tasks", "worlds", "store", "signals"},
    "training": {"model", "losses", "parallel", "data", "codecs", "convert", "store", "signals"},
    "decoding": {"model", "parallel"},
    "compile": {"decoding", "model", "parallel", "data", "training"},
    "convert": {"model", "codecs", "parallel", "store", "signals", "tensorfile", "torchfile"},
    "tasks": {"codecs", "decoding", "convert", "store"},
    "evaluation": {"tasks", "codecs", "worlds", "store", "data", "decoding", "parallel"},
}
FILES = sorted(ROOT.rglob("*.py"))


def _imports(path: pathlib.Path) -> set[str]:
    """Every module named in an import statement of the file, at any depth of the code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _rooms(path: pathlib.Path) -> set[str]:
    parts = [name.split(".") for name in _imports(path)]
    known = set(MAY_IMPORT) | ANYONE | {"cli"}
    return {part[1] for part in parts if part[0] == "aromni_jax" and len(part) > 1 and part[1] in known}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_upward_or_sideways(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room not in MAY_IMPORT:
        return
    forbidden = _rooms(path) - MAY_IMPORT[room] - ANYONE - {room}
    assert not forbidden, f"{path.name} in {room}/ imports {sorted(forbidden)}"


def test_every_room_has_a_rule():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert rooms - set(MAY_IMPORT) - ANYONE - {"cli", "__init__"} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_names_no_torch_and_no_tensorflow(path):
    """But for the one file that reads PyTorch's own format; it imports torch when it meets such a file."""
    roots = {name.split(".")[0] for name in _imports(path)}
    assert not roots & {"tensorflow", "pickle"}
    assert "torch" not in roots or path.name == "torchfile.py"


def test_an_installed_package_has_all_data():
    """Also hidden files, as Orbax writes them: a shipped model without them cannot be read."""
    setup = configparser.ConfigParser()
    setup.read(ROOT.parent / "setup.cfg")
    patterns = setup["options.package_data"]["aromni_jax"].split()
    taken = {name for pattern in patterns for name in glob.glob(pattern, root_dir=ROOT, recursive=True)}
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()}
    missing = {name for name in files - taken if not name.endswith((".py", ".pyc"))}
    assert files & taken and not missing, sorted(missing)


def test_import_is_light_and_offline():
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise OSError('network at import')\n"
        "socket.socket.connect = refuse\n"
        "import aromni_jax, aromni_jax.prepare\n"
        "bad = {'torch', 'tensorflow', 'sklearn', 'onnxruntime', 'apache_beam', 'pyarrow'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
