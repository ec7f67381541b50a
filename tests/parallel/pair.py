"""One of two processes that test_processes starts: does everything in turn, prints what came of it as one JSON line."""

import json
import pathlib
import sys

import jax
from jax.experimental import multihost_utils

from aromni_jax.config import MeshConfig
from aromni_jax.errors import UserError
from aromni_jax.parallel import (
    check_shared,
    exchange,
    failing_alone,
    initialize_distributed,
    make_mesh,
    same_everywhere,
    together,
)
from aromni_jax.store import checksums
from aromni_jax.training.checkpoints import Checkpoints
from tests.training.small_run import VOCABULARY
from tests.training.test_checkpoints import RUN, abstract


def error_of(action):
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def fails_on_one(index):
    with together("reading"):
        if index == 1:
            raise UserError("nowhere: no such folder")


def refused(*words, **more):
    raise AssertionError(f"a wait without a time limit: {words}")


def restored(index, runs):
    """What each process goes on from, of checkpoints that they do not see alike; then a save by both."""
    multihost_utils.sync_global_devices = multihost_utils.broadcast_one_to_all = refused
    checkpoints = Checkpoints(runs / str(index), keep=3)
    lines = []
    state, metadata = checkpoints.restore(abstract(make_mesh(MeshConfig())), RUN, VOCABULARY, lines.append)
    assert checksums(state.params) == metadata["checksums"]["params"]
    left = checkpoints.steps()
    checkpoints.close()
    both = Checkpoints(runs / "both", keep=3)
    both.save(state, RUN, VOCABULARY, {})
    both.close()
    return {"step": metadata["step"], "lines": lines, "left": left, "saved": both.steps()}


def main(port, index, shared, other, runs):
    initialize_distributed(f"127.0.0.1:{port}", 2, index, timeout=150)
    found = {"devices": jax.device_count(), "processes": jax.process_count()}
    found["exchanged"] = [exchange("letter", "ab"[index]), exchange("letter", "cd"[index])]
    found["together"] = error_of(lambda: fails_on_one(index))
    found["same"] = error_of(lambda: same_everywhere("run", {"a": 1, "train.steps": 20}))
    found["not the same"] = error_of(lambda: same_everywhere("run", {"a": 1, "train.steps": 20 + index}))
    found["shared"] = error_of(lambda: check_shared(pathlib.Path(shared)))
    found["restored"] = restored(index, pathlib.Path(runs))
    found["own"] = error_of(lambda: check_shared(pathlib.Path(other if index else shared)))
    if index == 0:
        found["alone"] = error_of(lambda: exchange("nobody else", timeout=0.5))
    print(json.dumps(found), flush=True)
    exchange("the end")
    with failing_alone():
        if index == 1:
            raise UserError("disk full")
        exchange("after the end")  # is never reached by the other


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
