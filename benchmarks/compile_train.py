"""Training steps compiled ahead of time for TPU pods, AR-Omni's beside MaxText's own compiled the same way.

    python -m benchmarks.compile_train --out benchmarks/results/compile_train.json

Needs libtpu, no TPU; minutes per line. Lines that the file has already are not compiled again.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
from typing import Any

import jax

from aromni_jax import store
from aromni_jax.compile import Trial, compile_training, target, training_markdown
from aromni_jax.compile.report import flags_note
from aromni_jax.config import MeshConfig, Remat
from aromni_jax.model import PRESETS
from aromni_jax.vocabulary import JointVocabulary

# MaxText (source of 2026-08-22, jax 0.10.2, libtpu 0.0.42.1), Llama-2-7B's shape with a vocabulary of 65,536, full
# remat, flash attention, pure FSDP, S = 4096, no perceptual loss; compiled on 2026-11-20 on the same kind of machine,
# without compiler flags, as the cases here are that are not `launched`.
# Topology, rows per chip -> temporaries and peak in GiB, TFLOP of matmuls, seconds as here. No QK-norm in it.
_FIELDS = ("temporaries_gib", "peak_gib", "matmuls_tflop", "step_s")


@dataclasses.dataclass(frozen=True)
class Case:
    """A line of the table; `maxtext` has the figures of _FIELDS, `launched` is with the flags of the launch scripts."""

    topology: str
    rows: int
    maxtext: tuple[float, ...] = ()
    model: str = "ar-omni"
    length: int = 4096
    remat: Remat = "full"
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    launched: bool = False

    @property
    def key(self) -> list[Any]:
        """What the file knows it by."""
        return [self.topology, self.model, self.rows, self.length, self.remat, self.launched]


CASES = [
    Case("v5e:16x16", 1, (3.97, 2.98, 207, 1.76)),
    Case("v5e:16x16", 2, (6.06, 4.46, 414, 3.53)),
    Case("v5p:4x4x8", 8, (27.3, 18.4, 1656, 6.02)),
    Case("v6e:16x16", 4, (13.9, 9.33, 828, 2.01)),
    Case("v5e:16x16", 2, remat="offload"),
    Case("v6e:16x16", 4, remat="qkv"),
    Case("v5p:4x4x8", 4, model="chameleon-34b"),
    Case("v5p:4x4x8", 1, length=32_768, mesh=MeshConfig(context=8)),
    Case("v5e:16x16", 1, launched=True),
    Case("v5p:4x4x8", 8, launched=True),
    Case("v6e:16x16", 4, launched=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE.json")
    out = parser.parse_args().out
    jax.config.update("jax_platforms", "cpu")
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if out.is_file() else []
    for case in CASES:
        if any(row["case"] == case.key for row in rows):
            continue
        trial = Trial(case.rows, case.remat, case.mesh)
        model = PRESETS[case.model]
        model = dataclasses.replace(model, max_positions=max(case.length, model.max_positions))
        where = target(case.topology, launched=case.launched)
        row = compile_training(where, model, JointVocabulary.aromni(), trial, length=case.length)
        row |= {"case": case.key, "model": case.model, "date": datetime.date.today().isoformat()}
        if case.maxtext:
            row["maxtext"] = dict(zip(_FIELDS, case.maxtext, strict=True))
        rows.append(row)
        versions = {package: importlib.metadata.version(package) for package in ("aromni_jax", "jax", "libtpu")}
        store.write_json(out, {"rows": rows, "versions": versions})
        store.write_text(out.with_suffix(".md"), _table(rows, versions))
        print(*case.key, "compiled", flush=True)


def _table(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    lines = [
        "# Training compiled for TPUs, ar-omni beside MaxText",
        "",
        "| topology, rows per chip | peak (GiB): MaxText | here | ratio | temporaries: MaxText | here "
        "| matmuls (TFLOP): MaxText | here | step (s): MaxText | here |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "maxtext" not in row:
            continue
        theirs, peak = row["maxtext"], row["peak"] / 2**30
        lines.append(
            f"| {row['topology']}, {row['rows']} | {theirs['peak_gib']:.2f} | {peak:.2f} "
            f"| {peak / theirs['peak_gib']:.2f} | {theirs['temporaries_gib']:.2f} | {row['temporaries'] / 2**30:.2f} "
            f"| {theirs['matmuls_tflop']} | {row['flops']['matmuls'] / 1e12:.0f} "
            f"| {theirs['step_s']:.2f} | {row['step_s']:.2f} |"
        )
    made_with = ", ".join(f"{name} {number}" for name, number in versions.items())
    plain, launched = ([row for row in rows if row["case"][-1] == flags] for flags in (False, True))
    lines += ["", training_markdown(plain), *_with_flags(plain, launched)]
    return "\n".join([*lines, f"{rows[-1]['date']}; {made_with}.", ""])


def _with_flags(plain: list[dict[str, Any]], launched: list[dict[str, Any]]) -> list[str]:
    """What the launch scripts' flags change, beside the same case without any."""
    lines = [
        "## With the flags of the launch scripts",
        "",
        "| topology, rows per chip | peak (GiB): without | with flags | temporaries: without | with "
        "| matmuls (TFLOP): without | with | collectives (GB): without | with | step (s): without | with |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in launched:
        other = next(other for other in plain if other["case"][:-1] == row["case"][:-1])
        pairs = zip(_figures(other), _figures(row), strict=True)
        cells = " | ".join(f"{without} | {flagged}" for without, flagged in pairs)
        lines.append(f"| {row['topology']}, {row['rows']} | {cells} |")
    return [*lines, "", flags_note(launched), ""]


def _figures(row: dict[str, Any]) -> list[str]:
    peak, temporaries = (f"{row[name] / 2**30:.2f}" for name in ("peak", "temporaries"))
    matmuls, sent = row["flops"]["matmuls"] / 1e12, row["collective_bytes"] / 1e9
    return [peak, temporaries, f"{matmuls:.0f}", f"{sent:.2f}", f"{row['step_s']:.2f}"]


if __name__ == "__main__":
    main()
