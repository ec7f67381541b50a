"""Eight fake CPU devices for the sharding tests, and no silent broadcasting, in every test."""

import jax
from hypothesis import HealthCheck, settings

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# A fresh checkout builds hypothesis' character tables in its first test, maybe on a busy machine: slow is no fault.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
