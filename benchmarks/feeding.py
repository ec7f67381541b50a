"""Does the data pipeline keep up, and does its memory stay flat? Tokens per second of the pipeline beside what the
training step of the demo eats on this CPU; host memory of the pipeline by number of records.

    python benchmarks/feeding.py --data DIR --out benchmarks/results/feeding.json
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from layouts import slots, useful
from machine import BUSY, CpuUse, hardware, positive, spread, versions
from output import Say, clocked, write
from plots import Panel, draw
from throughput import Ours, benchmark_config, seconds

from aromni_jax import data
from aromni_jax.cli.train import codebook
from aromni_jax.config import DataConfig, LossConfig
from aromni_jax.data import Manifest, Record
from aromni_jax.data.files import SUFFIX, RecordWriter
from aromni_jax.data.manifest import Component, PackedRows, write_manifest
from aromni_jax.data.packing import efficiency
from aromni_jax.data.rows import pack
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary, Modality

PACKINGS = ("offline", "online")
PACKAGES = ("aromni_jax", "jax", "grain", "array-record", "numpy")
DISTINCT = 1000  # made-up records; a file of more holds them again and again
VOCABULARY = JointVocabulary.compact(text_pieces=384, image_codes=128, image_tokens=32, speech_codes=256)
ROW, BATCH = 256, 8


# -- speed ----------------------------------------------------------------------------------------------


def feeding(data_path: str, packing: str, batches: int, repeats: int) -> dict[str, Any]:
    """Tokens per second of the pipeline alone, in one thread, without an array of JAX."""
    config = dataclasses.replace(benchmark_config(data_path).data, packing=packing, prefetch=0)
    stream = data.batches(config, LossConfig(), data.read_manifest(data_path).vocabulary)
    next(stream)  # opens the files; online, fills the rows that are kept open
    rates, real = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        made = [next(stream) for _ in range(batches)]
        taken = time.perf_counter() - started
        rates.append(slots(made) / taken)
        real.append(useful(made) / taken)
    return {"tokens_per_second": spread(rates), "useful_tokens_per_second": spread(real)}


def training(data_path: str, batches: int, repeats: int) -> dict[str, Any]:
    """The same of the demo's training step, its data made before."""
    config = benchmark_config(data_path)
    vocabulary = data.read_manifest(data_path).vocabulary
    step = Ours(config, vocabulary, codebook(config))
    made = list(itertools.islice(data.batches(config.data, config.loss, vocabulary), batches))
    seconds(step, made)
    times = [seconds(step, made) for _ in range(repeats)]
    return {
        "tokens_per_second": spread([slots(made) / taken for taken in times]),
        "useful_tokens_per_second": spread([useful(made) / taken for taken in times]),
    }


# -- memory ---------------------------------------------------------------------------------------------


def made_up_data(folder: pathlib.Path, count: int) -> None:
    """A data set of `count` records of 12 to 120 tokens, packed by itself in the order of the file."""
    if (folder / "manifest.json").exists():
        return
    (folder / "train").mkdir(parents=True, exist_ok=True)
    random, v = np.random.default_rng(0), VOCABULARY
    lengths = random.integers(10, 119, DISTINCT)
    records = [
        Record(
            np.asarray([v.bos, *random.integers(v.text.start, v.text.stop, length), v.eos], np.uint16),
            "text_to_text",
            int(length) // 2,
            f"made-up/{number}",
        )
        for number, length in enumerate(lengths)
    ]
    stored = [record.to_bytes() for record in records]
    rows = [row.to_bytes() for row in pack(records, ROW, v)]
    row_count = count * len(rows) // DISTINCT
    names = {"records": f"train/all.records{SUFFIX}", "rows": f"train.rows{SUFFIX}"}
    for name, contents, number in (("records", stored, count), ("rows", rows, row_count)):
        with RecordWriter(folder / names[name]) as writer:
            for content in itertools.islice(itertools.cycle(contents), number):
                writer.write(content)
    figures = dataclasses.asdict(efficiency(np.array(list(map(len, records))), len(rows), ROW))
    packed = PackedRows(rows=names["rows"], row_count=row_count, efficiency=figures)
    tokens = int(sum(map(len, records))) * count // DISTINCT
    part = Component(
        **vars(packed),
        records=names["records"],
        examples=count,
        tokens=tokens,
        tokens_by_modality={kind.name.lower(): tokens if kind is Modality.TEXT else 0 for kind in Modality},
        tasks={"text_to_text": {"examples": count, "tokens": tokens}},
    )
    manifest = Manifest(
        vocabulary=v, codecs={}, sequence_length=ROW, request={}, splits={"train": {"all": part}},
        joint={"train": packed},
    )  # fmt: skip
    write_manifest(folder, manifest)


def memory(folder: str, packing: str, batches: int) -> dict[str, float]:
    """MiB of this process that the pipeline adds: when it has begun, and after a quarter and all of the batches."""
    config = DataConfig(path=folder, sequence_length=ROW, batch_size=BATCH, packing=packing)
    before, started = resident(), time.perf_counter()
    stream = data.batches(config, LossConfig(), VOCABULARY)
    next(stream)
    opened = time.perf_counter() - started
    marks = {}
    for number in range(1, batches + 1):
        next(stream)
        if number in (1, batches // 4, batches):
            marks[number] = resident() - before
    return {"process": before, "begun": marks[1], "quarter": marks[batches // 4], "all": marks[batches],
            "seconds_to_first_batch": opened}  # fmt: skip


def resident() -> float:
    """MiB of memory that this process occupies, what it maps of files left out (the system may drop that)."""
    gc.collect()
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["RssAnon"].split()[0]) / 1024


def in_a_process(folder: pathlib.Path, packing: str, batches: int) -> dict[str, float]:
    """`memory` in a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, __file__, "--measure", str(folder), packing, str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"measuring {folder} failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


# -- all together ---------------------------------------------------------------------------------------


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    grown = []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or pathlib.Path(temporary)
        for count in args.sizes:
            made_up_data(scratch / f"{count}", count)
            say(f"{count:,} records are written")
        if args.write_only:
            return {}
        cpu = CpuUse()
        for count in args.sizes:
            for packing in PACKINGS:
                grown.append(
                    {"records": count, "packing": packing, **in_a_process(scratch / f"{count}", packing, args.batches)}
                )
                say(f"{count:,} records, {packing}: {grown[-1]['all']:.1f} MiB")
    rates = {"training": training(args.data, args.steps, args.repeats)}
    say(f"training: {rates['training']['tokens_per_second']['median']:,.0f} tokens/s")
    for packing in PACKINGS:
        rates[packing] = feeding(args.data, packing, args.batches, args.repeats)
        say(f"{packing}: {rates[packing]['tokens_per_second']['median']:,.0f} tokens/s")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware() | {"cpu_share_of_others": cpu.share_of_others()},
        "versions": versions(PACKAGES),
        "batches": args.batches,
        "repeats": args.repeats,
        "rates": rates,
        "memory": grown,
    }


def markdown(result: dict[str, Any]) -> str:
    """The two tables, with what has to be known to read them."""
    eaten = result["rates"]["training"]["useful_tokens_per_second"]["median"]
    lines = ["| what | tokens/s | useful tokens/s | x training |", "|---|---|---|---|"]
    names = {"training": "the demo's training step", "offline": "pipeline, rows packed before",
             "online": "pipeline, packed while reading"}  # fmt: skip
    for key, name in names.items():
        rate = result["rates"][key]
        cells = (
            "{median:,.0f} ({min:,.0f}..{max:,.0f})".format(**rate[kind])
            for kind in ("tokens_per_second", "useful_tokens_per_second")
        )
        ratio = rate["useful_tokens_per_second"]["median"] / eaten
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if key == 'training' else f'{ratio:.1f}'} |")
    lines += ["", "| records | packing | begun, MiB | a quarter of the batches | all of them | first batch after |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for row in result["memory"]:
        sizes = " | ".join(f"{row[key]:.1f}" for key in ("begun", "quarter", "all"))
        seconds_ = f"{row['seconds_to_first_batch']:.2f} s"
        lines.append(f"| {row['records']:,} | {row['packing']} | {sizes} | {seconds_} |")
    machine, others = result["hardware"], result["hardware"]["cpu_share_of_others"]
    lines += [
        "",
        f"Median (lowest..highest) of {result['repeats']}. The pipeline runs in one thread, alone; the step in all.",
        f"Memory is what the pipeline adds to its process (not the pages of files), over {result['batches']:,} batches",
        f"of {BATCH} x {ROW} tokens. {machine['processor']}, {machine['cores']} cores; {result['date']};",
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
        "![host memory by number of records](feeding.png)",
    ]
    if others is not None:
        lines.insert(-1, f"Meanwhile other programs used {others:.1%} of the CPU.")
    if others is not None and others > BUSY:
        lines += ["", f"**Other programs used {others:.0%} of the CPU: these figures are not to be quoted.**"]
    return "\n".join(lines) + "\n"


def plot(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Memory by records, and the rates."""
    grown = {
        packing: [(row["records"], *[row["all"]] * 3) for row in result["memory"] if row["packing"] == packing]
        for packing in PACKINGS
    }
    panel = Panel("Host memory of the data pipeline", "records in the data set", "MiB beside the program", grown)
    draw(path, [panel], f"{result['date']}, {result['hardware']['processor']}, {result['hardware']['cores']} cores")


def main() -> int:
    """Exit code 0, or 1 with one line of reason."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(memory(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="made by `aromni prepare numbers --out DIR`")
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, metavar="FILE.json", help="a .md and a .png go beside it"
    )
    parser.add_argument(
        "--sizes", type=positive, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N", help="records"
    )
    parser.add_argument("--batches", type=positive, default=1000, metavar="N", help="of the pipeline, each time (1000)")
    parser.add_argument("--steps", type=positive, default=8, metavar="N", help="of training, each time (8)")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="(5)")
    parser.add_argument("--scratch", type=pathlib.Path, metavar="DIR", help="keeps the made-up data sets")
    parser.add_argument("--write-only", action="store_true", help="only write the made-up data sets")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    say = clocked()
    return write("feeding", args.out, "Feeding the training", lambda: run(args, say), markdown, plot)


if __name__ == "__main__":
    sys.exit(main())
