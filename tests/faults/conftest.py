"""The data, a run left alone, one killed half-way, and the table of what the faults came to."""

import datetime
import os
import pathlib
import re

import pytest

from aromni_jax import store
from tests.faults import runs

TITLE = ("fault", "what was said", "what survived", "seconds to the next step")
_rows = []


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return runs.write_data(tmp_path_factory.mktemp("faults") / "data")


@pytest.fixture(scope="session")
def straight(data):
    """A run that nothing happened to."""
    runs.finish(data.parent / "straight", data)
    return data.parent / "straight"


@pytest.fixture(scope="session")
def half(data, straight):
    """A run killed after 170 steps and more, with checkpoints of steps 100 and 150."""
    run = data.parent / "half"
    with runs.training(run, data) as killed:
        killed.reach(170).saved(150).kill()
    assert store.complete_steps(run)[-1] < runs.STEPS, "it was too fast for us"
    return run


@pytest.fixture
def note(data, tmp_path, request):
    """`note(fault, said, survived, training)` makes a row of the table."""

    def add(fault, said, survived, again):
        for folder, name in ((tmp_path, "RUNS"), (data, "DATA"), (data.parent, "RUNS")):
            said = said.replace(str(folder), name)
        said = re.sub(r"\s+", " ", said).replace("|", "/").strip()
        line = f"| {' | '.join((fault, said or '(nothing)', survived, f'{again.first_step:.1f}'))} |"
        _rows.append((f"| {fault}", line))

    return add


def pytest_terminal_summary(terminalreporter):
    """Print the table; FAULT_TABLE=FILE also writes it (rows of faults that were not done this time stay)."""
    if not _rows:
        return
    head, new = [f"| {' | '.join(row)} |" for row in (TITLE, ("---",) * len(TITLE))], dict(_rows)
    terminalreporter.write_line("\n".join([*head, *new.values()]))
    if file := os.environ.get("FAULT_TABLE"):
        old = pathlib.Path(file).read_text().splitlines() if pathlib.Path(file).is_file() else []
        kept = {line.split(" | ")[0]: line for line in old if line.startswith("| ") and line not in head}
        pathlib.Path(file).write_text(_head() + "\n".join([*head, *(kept | new).values()]) + "\n")


def _head():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    processor = re.search(r"model name\s*: (.*)", info)[1]
    return (
        "# What happens when something goes wrong\n\n"
        f"`make test-faults`, {datetime.date.today()}, {os.cpu_count()} cores of an {processor}, shared with other "
        "programs. Every row is a\nreal `aromni train` of 400 steps with a checkpoint every 50 to which this was done "
        'from outside, then the same command\nagain. "Equal" is bit for bit: parameters, optimiser state, and every '
        "line of the log but its clocks, beside a run that\nnothing happened to. The last column is from the new start "
        "to its first line of a step: Python, JAX, compilation from a\ncache, reading the checkpoint, ten steps.\n\n"
    )
