"""Loops with collectives in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from aromni_jax.parallel.mesh import platform


def loops_keep_order() -> bool:
    """False on the CPUs of several processes.

    XLA's CPU runtime begins with what stands after a loop while the loop still goes on. With collectives in both, two
    processes take them in different order sooner or later, and wait for each other for ever (jaxlib 0.10).
    """
    return platform() != "cpu" or jax.process_count() == 1


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`, unrolled where loops do not keep order."""
    return jax.lax.scan(step, carry, xs, unroll=1 if loops_keep_order() else True)
