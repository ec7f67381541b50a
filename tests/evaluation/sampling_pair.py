"""One of two processes that test_progress_samples starts: answers with the other, says what it has to show."""

import json
import pathlib
import sys

import jax

from aromni_jax import data
from aromni_jax.config import MeshConfig
from aromni_jax.evaluation.progress_samples import ProgressSamples
from aromni_jax.parallel import initialize_distributed, make_mesh
from tests.evaluation.test_progress_samples import placed, run_config


def main(port, folder, runs, index):
    initialize_distributed(f"127.0.0.1:{port}", 2, int(index), timeout=150)
    config = run_config(folder, data.read_manifest(folder).vocabulary.size)
    sampler = ProgressSamples(config, pathlib.Path(runs) / index)
    mesh = make_mesh(MeshConfig())
    params = placed(config, mesh)
    with jax.set_mesh(mesh):
        print(json.dumps(sorted(sampler(params, 5))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
