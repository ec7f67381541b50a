"""Eight fake CPU devices for the sharding tests, and no silent broadcasting, in every test."""

import pathlib
import signal

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# A fresh checkout builds hypothesis' character tables in its first test, maybe on a busy machine: slow is no fault.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

# A shell that starts the tests in its background has interrupts ignored, by them and by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

_MAPS = pathlib.Path("/proc/self/maps")
_MANY_MAPS = 20_000  # Linux allows a process 65,530


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Every compiled program takes some maps of memory; XLA crashes when there are no more."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()
