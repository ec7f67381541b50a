"""One of two processes that test_processes starts: does everything in turn, prints what came of it as one JSON line."""

import json
import pathlib
import sys

import jax

from aromni_jax.errors import UserError
from aromni_jax.parallel import check_shared, exchange, failing_alone, initialize_distributed, same_everywhere, together


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


def main(port, index, shared, other):
    initialize_distributed(f"127.0.0.1:{port}", 2, index, timeout=150)
    found = {"devices": jax.device_count(), "processes": jax.process_count()}
    found["exchanged"] = [exchange("letter", "ab"[index]), exchange("letter", "cd"[index])]
    found["together"] = error_of(lambda: fails_on_one(index))
    found["same"] = error_of(lambda: same_everywhere("run", {"a": 1, "train.steps": 20}))
    found["not the same"] = error_of(lambda: same_everywhere("run", {"a": 1, "train.steps": 20 + index}))
    found["shared"] = error_of(lambda: check_shared(pathlib.Path(shared)))
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
