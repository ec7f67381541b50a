"""Mesh, logical-axis rules and multi-host start (DESIGN 7)."""

from aromni_jax.parallel.mesh import AXES, initialize_distributed, make_mesh, mesh_sizes
from aromni_jax.parallel.sharding import DEFAULT_RULES, ShardingRules, batch_sharding, param_shardings, shard

__all__ = [
    "AXES",
    "DEFAULT_RULES",
    "ShardingRules",
    "batch_sharding",
    "initialize_distributed",
    "make_mesh",
    "mesh_sizes",
    "param_shardings",
    "shard",
]
