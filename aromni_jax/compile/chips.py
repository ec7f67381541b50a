"""TPU topologies by name, and what their chips have."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from aromni_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      memory: bytes of HBM that a program may use: what the compiler says when one does not fit.
      bandwidth: of the HBM, bytes per second, as published.
      clock: Hz, for the compiler's cycles.
      flops: of bfloat16 products per second, as published.
      links: bytes per second that reach it over all its links to other chips together, as published.
    """

    memory: float
    bandwidth: float
    clock: float
    flops: float = math.nan
    links: float = math.nan


CHIPS = {
    "v5e": Chip(15.75 * 2**30, 819e9, 1.503e9, 197e12, 200e9),
    "v5p": Chip(95.74 * 2**30, 2765e9, 1.75e9, 459e12, 600e9),
    "v6e": Chip(31.25 * 2**30, 1640e9, 1.75e9, 918e12, 448e9),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
      name: of the topology, as "v5e:2x4".
      chip: one of its chips.
      devices: descriptions of them; there is nothing behind.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]


def target(name: str) -> Target:
    """The topology called `name`: the generation, then chips along each axis.

    Raises:
      UserError: libtpu, which has the compiler, is not installed; no such generation or topology.
    """
    generation = name.split(":")[0]
    if generation not in CHIPS:
        raise UserError(f"topology {name!r}: begins with one of {', '.join(CHIPS)}, as in v5e:2x4")
    try:
        importlib.import_module("libtpu").get_library_path()
    except (ImportError, AttributeError):
        raise UserError("compiling for TPUs needs libtpu, but no TPU: pip install 'aromni_jax[compile]'") from None
    # libtpu asks the cloud which TPU it is on, and waits long for an answer, unless it is told that there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # its lock guards a chip; here is none
    try:
        devices = topologies.get_topology_desc(name, platform="tpu").devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"topology {name!r}: {str(error).splitlines()[0]}") from error
    return Target(name, CHIPS[generation], devices)


def needed_gib(words: str) -> float | None:
    """GiB that a program wants of the HBM, from the compiler's refusal: "(34.52G) exceeds ...", "Used 17.1G of ..."."""
    found = re.search(r"(?:Used |\()([\d.]+)G\b", words)
    return float(found.group(1)) if found else None
