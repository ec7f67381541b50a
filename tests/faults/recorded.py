"""`aromni train` that also writes down which examples each of its batches holds: `recorded.py FILE train ...`."""

import json
import sys

from aromni_jax import data
from aromni_jax.cli.main import main
from tests.faults.numbered import numbers


class Recorded:
    """Batches, and a line for each one: step and examples."""

    def __init__(self, batches, file):
        self._batches, self._file = batches, file

    def __getattr__(self, name):
        return getattr(self._batches, name)

    def __next__(self):
        batch = next(self._batches)
        with open(self._file, "a") as lines:
            lines.write(json.dumps([self._batches.get_state()["step"], numbers(batch)]) + "\n")
        return batch


if __name__ == "__main__":
    make = data.batches
    data.batches = lambda *words, **more: Recorded(make(*words, **more), sys.argv[1])
    sys.exit(main(sys.argv[2:]))
