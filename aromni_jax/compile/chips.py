"""TPU topologies by name, and what their chips have."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.resources
import math
import os
import re
from collections.abc import Mapping, Sequence
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


FLAGS = importlib.resources.files("aromni_jax.compile") / "tpu_flags.txt"


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
      name: of the topology, as "v5e:2x4".
      chip: one of its chips.
      devices: descriptions of them; there is nothing behind.
      options: flags for the compiler, name without dashes -> value.
      flags: what it is compiled with in all, as LIBTPU_INIT_ARGS would have it.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """The program for this target.

        Raises:
          UserError: the compiler does not know one of the flags of FLAGS, or its value.
          jax.errors.JaxRuntimeError: what the compiler says otherwise, as that it does not fit.
        """
        try:
            return lowered.compile(compiler_options=dict(self.options))
        except jax.errors.JaxRuntimeError as error:
            found = re.search(r"(No such compile option|Failed to parse|While setting option)\b.*", str(error))
            if found is None:
                raise
            words = found.group().rstrip(".")
            raise UserError(f"{FLAGS}: the compiler says: {words}; mend or remove that line") from error


def target(name: str, *, launched: bool) -> Target:
    """The topology called `name`: the generation, then chips along each axis.

    Args:
      launched: compile with the flags that the launch scripts set, but for those that LIBTPU_INIT_ARGS has, which
        libtpu reads by itself.

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
    own = os.environ.get("LIBTPU_INIT_ARGS", "").split()
    given = {_name(flag) for flag in own}
    flags = [flag for flag in launch_flags(generation) if _name(flag) not in given] if launched else []
    options = {_name(flag): flag.partition("=")[2] for flag in flags}
    return Target(name, CHIPS[generation], devices, options, (*flags, *own))


def _name(flag: str) -> str:
    return flag.lstrip("-").partition("=")[0]


def launch_flags(generation: str) -> list[str]:
    """Flags of a generation, "--name=value", in the order of FLAGS."""
    lines = (line.split() for line in FLAGS.read_bytes().decode(errors="replace").splitlines())
    return [fields[1] for fields in lines if len(fields) > 1 and generation in fields[0].split(",")]


def needed_gib(words: str) -> float | None:
    """GiB that a program wants of the HBM, from the compiler's refusal: "(34.52G) exceeds ...", "Used 17.1G of ..."."""
    found = re.search(r"(?:Used |\()([\d.]+)G\b", words)
    return float(found.group(1)) if found else None
