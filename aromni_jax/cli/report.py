"""`aromni report`: one self-contained page from a run folder, finished or not."""

from __future__ import annotations

import argparse
import pathlib

EXAMPLE = "aromni report runs/mine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("run_dir", type=pathlib.Path, metavar="DIR", help="of `aromni train` or `aromni demo`")


def run(args: argparse.Namespace) -> int:
    """Writes DIR/report.html."""
    from aromni_jax.evaluation.report import write_report

    print(f"written: {write_report(args.run_dir)}")
    return 0
