"""What a token of training costs as things grow: tokens per second by rows of a batch, tokens of a row, fake devices.

    python benchmarks/growth.py --what batch length devices --out benchmarks/results/growth.json

Every point is a process of its own. The devices are threads of one CPU, so more of them cannot be faster: what is lost
with their number is what the sharded program costs beside the same work.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from machine import BUSY, CpuUse, hardware, positive, spread, versions
from output import Result, Say, write
from plots import Panel, draw

from aromni_jax import store
from aromni_jax.config import DataConfig, LossConfig, MeshConfig, OptimizerConfig, RunConfig, TrainConfig, load_config
from aromni_jax.data import Batch
from aromni_jax.errors import UserError
from aromni_jax.model import flops_per_token
from aromni_jax.parallel import batch_sharding, make_mesh
from aromni_jax.training import abstract_state, lower_step, make_optimizer, make_state
from aromni_jax.vocabulary import JointVocabulary, task_id

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "numbers.py"
PACKAGES = ("aromni_jax", "jax", "jaxlib", "optax", "numpy")
VOCABULARY = JointVocabulary.compact(text_pieces=384, image_codes=128, image_tokens=32, speech_codes=256)
# What grows -> its values; the other two stay at ROWS, LENGTH and one device.
SWEEPS = {"batch": (2, 4, 8, 16, 32), "length": (64, 128, 256, 512, 1024), "devices": (1, 2, 4, 8)}
TITLES = {"batch": "rows of a batch", "length": "tokens of a row, one example each", "devices": "fake devices (fsdp)"}
ROWS, LENGTH = 8, 256


def run_config(rows: int, length: int) -> RunConfig:
    """The demo's model, layers in a scan (compiled in seconds), whole batches at once."""
    model = dataclasses.replace(load_config(f"{CONFIG}:demo").model, scan_layers=True, perceptual_dim=0)
    return RunConfig(
        model=model,
        data=DataConfig(sequence_length=length, batch_size=rows),
        loss=LossConfig(perceptual_weight=0.0),
        optimizer=OptimizerConfig(warmup_steps=0, decay="constant"),
        mesh=MeshConfig(),
        train=TrainConfig(steps=10),
    )


def measure(rows: int, length: int, steps: int, repeats: int) -> list[float]:
    """Tokens per second of each repeat of `steps` steps on all devices of this process."""
    config = run_config(rows, length)
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    abstract = abstract_state(config, VOCABULARY, optimizer, mesh)
    program = lower_step(config, VOCABULARY, optimizer, abstract, mesh).compile()
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.jit(lambda key: make_state(config, VOCABULARY, optimizer, key), out_shardings=placed)(jax.random.key(0))
    batch = jax.device_put(made_up(rows, length), batch_sharding(mesh))
    rates = []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        for _ in range(steps):
            state, _ = program(state, batch, None)
        jax.block_until_ready(state)
        if repeat:  # the first one warms up
            rates.append(rows * length * steps / (time.perf_counter() - started))
    return rates


def made_up(rows: int, length: int) -> Batch:
    """Rows of one example of random text."""
    random = np.random.default_rng(0)
    shape, text = (rows, length), VOCABULARY.text
    return Batch(
        tokens=random.integers(text.start, text.stop, shape).astype(np.int32),
        loss_weights=np.ones(shape, np.float32),
        segment_ids=np.ones(shape, np.int32),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy(),
        task_ids=np.full(shape, task_id("text_to_text"), np.int32),
    )


def in_a_process(what: str, value: int, steps: int, repeats: int) -> list[float]:
    """`measure` with one thing changed, in a process of its own."""
    rows, length, devices = (value if what == name else usual for name, usual in
                             (("batch", ROWS), ("length", LENGTH), ("devices", 1)))  # fmt: skip
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, __file__, "--measure", *map(str, (rows, length, steps, repeats))],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"{what} {value} failed: {''.join(done.stderr.strip().splitlines()[-1:])}")
    found: list[float] = json.loads(done.stdout)
    return found


def sweep(what: str, steps: int, repeats: int, say: Say) -> dict[str, Any]:
    """All points of one thing that grows."""
    cpu, points = CpuUse(), []
    for value in SWEEPS[what]:
        # As many tokens for every point: a step of a larger batch takes longer.
        size = max(1, steps * (ROWS if what == "batch" else LENGTH) // value) if what != "devices" else steps
        rates = in_a_process(what, value, size, repeats)
        points.append({"value": value, "tokens_per_second": spread(rates)})
        if what == "length":
            points[-1]["mflop_per_token"] = flops_per_token(run_config(ROWS, value).model, value) / 1e6
        say(f"{what} {value}: {points[-1]['tokens_per_second']['median']:,.0f} tokens/s")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware() | {"cpu_share_of_others": cpu.share_of_others()},
        "versions": versions(PACKAGES),
        "repeats": repeats,
        "points": points,
    }


def markdown(result: dict[str, Any]) -> str:
    """A table per thing that grows."""
    lines = []
    for what, part in result.items():
        first = part["points"][0]["tokens_per_second"]["median"]
        flops = "mflop_per_token" in part["points"][0]
        lines += [
            f"## By {TITLES[what]}",
            "",
            f"| {what} | tokens/s | of the first |" + (" GFLOP/s |" if flops else ""),
        ]
        lines.append("|---|---|---|" + ("---|" if flops else ""))
        for point in part["points"]:
            rate = point["tokens_per_second"]
            cells = [f"{point['value']:,}", "{median:,.0f} ({min:,.0f}..{max:,.0f})".format(**rate)]
            cells.append(f"{rate['median'] / first:.2f}")
            if flops:
                cells.append(f"{rate['median'] * point['mflop_per_token'] / 1e3:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
        machine, others = part["hardware"], part["hardware"]["cpu_share_of_others"]
        told = ", ".join(f"{name} {version}" for name, version in sorted(part["versions"].items()))
        lines += ["", f"Median (lowest..highest) of {part['repeats']};"]
        lines += [f"{machine['processor']}, {machine['cores']} cores; {part['date']};", f"{told}."]
        if others is not None:
            busy = " **The machine was busy: these figures are not to be quoted.**" if others > BUSY else ""
            lines.append(f"Meanwhile other programs used {others:.1%} of the CPU.{busy}")
        lines.append("")
    return "\n".join([*lines, "![tokens per second](growth.png)", ""])


def plot(path: pathlib.Path, result: dict[str, Any]) -> None:
    """A panel per thing that grows."""
    panels = []
    for what, part in result.items():
        rates = [(point["value"], point["tokens_per_second"]) for point in part["points"]]
        line = [(value, rate["median"], rate["min"], rate["max"]) for value, rate in rates]
        panels.append(Panel(f"By {what}", TITLES[what], "tokens per second", {"training step": line}))
    part = next(iter(result.values()))
    draw(path, panels, f"{part['date']}, {part['hardware']['processor']}, {part['hardware']['cores']} cores")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 with one line of reason."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--measure"]:
        print(json.dumps(measure(*map(int, words[1:]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="what grows (all)")
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, metavar="FILE.json",
        help="a .md and a .png go beside it; what is there of other sweeps stays",
    )  # fmt: skip
    parser.add_argument("--steps", type=positive, default=8, metavar="N", help="of 8 x 256 tokens, each time (8)")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="(5)")
    args = parser.parse_args(words)

    def run() -> Result:
        result = store.read_json(args.out) if args.out.exists() else {}
        for what in args.what:
            result[what] = sweep(what, args.steps, args.repeats, lambda line: print(line, file=sys.stderr, flush=True))
        return {what: result[what] for what in SWEEPS if what in result}

    return write("growth", args.out, "What a token costs as things grow", run, markdown, plot)


if __name__ == "__main__":
    sys.exit(main())
