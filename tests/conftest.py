"""Eight fake CPU devices for the sharding tests, and no silent broadcasting, in every test."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
