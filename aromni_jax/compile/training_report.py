"""The figures of training as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aromni_jax.compile.report import flags_note, memory_cells

_NOTES = """\
Everything per chip and step; nothing here was measured on a TPU. Peak: the compiler's, of temporaries in use at one
time; it fits if peak and arguments are together less than what the compiler lets a program use of the chip's HBM.
Model FLOPs: 6 per weight and token (4 if it is not trained), attention causal, nothing computed twice. Compiled:
matrix products of the scheduled program times how often its loops run, and the attention kernels by the blocks that
they compute. Policy: what the remat policy and the tiled cross entropy compute again, on paper. Matmuls / policy's:
attention left out on both sides, whose kernels compute scores once more backward, and blocks on the diagonal whole.
Collectives: bytes that reach a chip, all-reduce counted twice; over "context" keys and values among them. FSDP
minimum: parameters gathered forward and backward (the embedding table forward only), gradients scattered, all in the
dtype of computation. Step: the compiler's own estimate of cycles at the chip's clock, plus the attention kernels at
half of the chip's peak; it has nothing for transfers that are not hidden behind products. By the links: all
collectives at the published bandwidth, one after the other. MFU: model FLOPs of the step over the chip's peak. Take
times as +-10 %."""


def training_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two lines per setting, and what the columns are."""
    fitting = [row for row in rows if "peak" in row]
    return "\n".join(
        [
            "| topology, mesh | rows x tokens, remat | arguments | temporaries | outputs | peak (GiB) | fits |",
            "|---|---|---|---|---|---|---|",
            *(f"{_what(row)} | {memory_cells(row)} |" for row in rows),
            "",
            "| topology, mesh | rows x tokens, remat | model | matmuls + kernels (TFLOP) | compiled / model | policy "
            "| matmuls / policy's | collectives (GB) | / FSDP minimum | by the links (s) | step (s) | MFU | tokens/s |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
            *(f"{_what(row)} | {_work(row)} |" for row in fitting),
            "",
            _NOTES,
            flags_note(rows),
            "",
        ]
    )


def _what(row: Mapping[str, Any]) -> str:
    mesh = " ".join(f"{axis}={size}" for axis, size in row["mesh"].items() if size > 1)
    model = f"{row['model']}, " if "model" in row else ""
    lora = f", LoRA {row['lora_rank']}" if row.get("lora_rank") else ""
    return f"| {model}{row['topology']}, {mesh} | {row['rows']} x {row['length']}, {row['remat']}{lora}"


def _work(row: Mapping[str, Any]) -> str:
    flops, kinds = row["flops"], row["collectives"]
    sent = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sorted(kinds.items(), key=lambda item: -item[1]))
    over = row["over_minimum"]
    return (
        f"{flops['model'] / 1e12:.0f} | {flops['matmuls'] / 1e12:.0f} + {flops['kernels'] / 1e12:.0f} | "
        f"{row['flops_over_model']:.3f} | {row['policy_over_model']:.3f} | {row['matmuls_over_policy']:.3f} | "
        f"{sent} | {f'{over:.2f}' if over else ''} | "
        f"{row['links_s']:.2f} | {row['step_s']:.2f} | {row['mfu']:.0%} | {row['tokens_per_second']:.0f}"
    )
