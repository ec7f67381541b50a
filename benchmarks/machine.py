"""What a figure was measured on, whether the machine was idle meanwhile, and how figures are summed up."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import platform
import statistics
from collections.abc import Sequence
from typing import Any

BUSY = 0.05  # share of the CPU used by others from which on the figures are not to be quoted


class CpuUse:
    """Share of the machine's CPU time that other programs used since this was made."""

    def __init__(self) -> None:
        self._before = self._now()

    def share_of_others(self) -> float | None:
        """0 to 1; None where the system does not tell."""
        if self._before is None:
            return None
        busy, whole, own = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return max(0.0, (busy - own) / whole)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Busy seconds and all seconds of all cores, busy seconds of this process and its children."""
        try:
            line = pathlib.Path("/proc/stat").read_text().splitlines()[0]
        except OSError:
            return None
        user, nice, system, idle, iowait, *rest = (int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in line.split()[1:9])
        busy = user + nice + system + sum(rest)
        return busy, busy + idle + iowait, sum(os.times()[:4])  # with the children that have ended


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, threads per side."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "threads": threads(),
    }


def threads() -> int:
    """What both sides use: the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and of the installed packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def positive(text: str) -> int:
    """Argument type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
