"""Mesh, logical-axis rules and multi-host start (DESIGN 7)."""

from aromni_jax.parallel.collectives import joined, sum_over_rows, whole
from aromni_jax.parallel.loops import loops_keep_order, scan
from aromni_jax.parallel.mesh import AXES, alone, make_mesh, mesh_sizes, platform
from aromni_jax.parallel.processes import (
    check_shared,
    exchange,
    failing_alone,
    initialize_distributed,
    same_everywhere,
    together,
)
from aromni_jax.parallel.sharding import (
    DEFAULT_RULES,
    ShardingRules,
    batch_sharding,
    own_rows,
    param_shardings,
    shard,
)

__all__ = [
    "AXES",
    "DEFAULT_RULES",
    "ShardingRules",
    "alone",
    "batch_sharding",
    "check_shared",
    "exchange",
    "failing_alone",
    "initialize_distributed",
    "joined",
    "loops_keep_order",
    "make_mesh",
    "mesh_sizes",
    "own_rows",
    "param_shardings",
    "platform",
    "same_everywhere",
    "scan",
    "shard",
    "sum_over_rows",
    "together",
    "whole",
]
