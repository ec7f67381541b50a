"""The figures as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_GIB = 2**30
_NOTES = """\
GiB and GB per chip; nothing here was measured on a TPU. In all: arguments, temporaries, outputs that are not arguments
given back, and the program; it fits if that is less than what the compiler lets a program use of the chip's HBM. Moved:
operands and results in HBM of every instruction of the scheduled program, times how often its loops run; slices count
as slices. Between chunks: what is done once per call, mostly copies into the layouts that the loop prefers, shared out
among its steps. Floor: every weight but the embedding table and every slot of the cache, read once. By bandwidth: moved
bytes at the published bandwidth of the HBM. By the compiler: its own estimate of cycles at the chip's clock, with none
for sorts, work and transfers one after the other."""


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per topology and program, and what the columns are."""
    lines = [
        "| topology, mesh | rows, slots, cache | program | arguments | temporaries | outputs | in all | fits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for program in ("prefill", "decode"):
            if program in row:
                lines.append(f"{_what(row)} | {_named(row, program)} | {memory_cells(row[program])} |")
    lines += [
        "",
        "| topology, mesh | rows, slots, cache | moved per step | floor: weights + cache | moved / floor "
        "| of it between chunks | ms by bandwidth | tokens/s | ms by the compiler |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "bytes_per_step" in row.get("decode", {}):
            lines.append(f"{_what(row)} | {_step(row)} |")
    return "\n".join([*lines, "", _NOTES, flags_note(rows), ""])


def _what(row: Mapping[str, Any]) -> str:
    mesh = " ".join(f"{axis}={size}" for axis, size in row["mesh"].items() if size > 1)
    return f"| {row['topology']}, {mesh} | {row['batch']}, {row['length']}, {row['cache_dtype']}"


def _named(row: Mapping[str, Any], program: str) -> str:
    return f"prefill of {row['prompt']}" if program == "prefill" else f"{row['steps']} steps"


def flags_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """The flags that the compiler had for each topology, in a sentence for all that had the same."""
    topologies: dict[str, list[str]] = {}
    for row in rows:
        names = topologies.setdefault(" ".join(row["flags"]), [])
        names += [row["topology"]] if row["topology"] not in names else []
    return "\n".join(
        f"Compiler flags for {', '.join(names)}: {flags or 'none'}." for flags, names in topologies.items()
    )


def memory_cells(figures: Mapping[str, Any]) -> str:
    """Arguments, temporaries, outputs and peak in GiB, and whether they fit; of a refused program what it needs."""
    if "peak" not in figures:
        needed = figures["needed_gib"]
        return f"| | | {f'{needed:.2f}' if needed else '?'} | no"
    sizes = [figures[name] / _GIB for name in ("arguments", "temporaries", "outputs", "peak")]
    return " | ".join(f"{size:.2f}" for size in sizes) + f" | {'yes' if figures['fits'] else 'no'}"


def _step(row: Mapping[str, Any]) -> str:
    figures, floor = row["decode"], row["floor"]
    return (
        f"{figures['bytes_per_step'] / 1e9:.2f} | {floor['weights'] / 1e9:.2f} + {floor['cache'] / 1e9:.2f} | "
        f"{figures['over_floor']:.2f} | {figures['of_it_between_chunks'] / 1e9:.2f} | "
        f"{figures['step_ms_by_bandwidth']:.2f} | {figures['tokens_per_second_by_bandwidth']:.0f} | "
        f"{figures['step_ms_by_compiler']:.2f}"
    )
