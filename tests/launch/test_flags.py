"""The flags of LIBTPU_INIT_ARGS: one table, a reason for each, and a compiler that takes them."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from aromni_jax.compile.chips import launch_flags
from tests.launch.places import ROOT, call

FLAGS = ROOT / "aromni_jax" / "compile" / "tpu_flags.txt"
GENERATIONS = {"v5e": "v5e:2x4", "v5p": "v5:2x2x2", "v6e": "v6e:2x4"}
COMPILE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

devices = topologies.get_topology_desc(sys.argv[1], platform="tpu").devices
rows = NamedSharding(Mesh(np.array(devices), ("fsdp",)), P("fsdp"))
arrays = [jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=rows)] * 2
print("compiled", jax.jit(lambda a, b: jnp.tanh(a @ b), out_shardings=rows).lower(*arrays).compile() is not None)
"""


def table():
    lines = FLAGS.read_text().splitlines()
    return [line.split(None, 2) for line in lines if line and not line.startswith("#")]


def flags(generation):
    done = call("local.sh", "--config", "c", "--run-dir", "r", "--tpu", generation, "--dry-run")
    assert done.returncode == 0, done.stderr
    return re.search(r"^export 'LIBTPU_INIT_ARGS=(.*)'$", done.stdout, re.MULTILINE)[1].split(" ")


def test_every_flag_has_a_generation_a_value_and_a_reason():
    for generations, flag, reason in table():
        assert set(generations.split(",")) <= set(GENERATIONS)
        assert re.fullmatch(r"--xla_\w+=\w+", flag) and len(reason.split()) > 5


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_generation_gets_its_flags_once_and_no_others(generation):
    expected = [flag for generations, flag, _ in table() if generation in generations.split(",")]
    found = flags(generation)
    assert found == expected == launch_flags(generation) and found
    assert len({flag.split("=")[0] for flag in found}) == len(found)


def test_the_users_own_flags_come_last_and_win():
    words = ["--config", "c", "--run-dir", "r", "--tpu", "v6e-256", "--dry-run"]
    done = call("local.sh", *words, LIBTPU_INIT_ARGS="--xla_own=1")
    assert "98304 --xla_own=1'" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler (libtpu)")
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_compiler_takes_the_flags(generation):
    environment = {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, "-c", COMPILE, GENERATIONS[generation]]
    for more, succeeds in ([], True), (["--xla_no_such_flag=1"], False):
        given = os.environ | environment | {"LIBTPU_INIT_ARGS": " ".join(flags(generation) + more)}
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=120)
        assert (done.stdout == "compiled True\n") == succeeds, done.stderr
