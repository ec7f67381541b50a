"""`aromni train`: pretrain or tune from a config file."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from aromni_jax.config import RunConfig, load_config
from aromni_jax.errors import UserError

if TYPE_CHECKING:
    from aromni_jax.training.sampling import Sampler

EXAMPLE = "aromni train --config configs/numbers.py:tiny --run-dir runs/tiny --set train.steps=100"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="Python file with get_config(arg)")
    parser.add_argument(
        "--run-dir", required=True, metavar="DIR", type=pathlib.Path, help="new run, or one to go on with"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="config values to change"
    )
    parser.add_argument(
        "--profile", metavar="FROM:TO", type=steps, help="trace these steps with JAX's profiler, into DIR/profile"
    )
    group = parser.add_argument_group("several processes (the same command for each; launch/ has scripts for it)")
    group.add_argument("--distributed", action="store_true", help="TPU pod, SLURM, GKE, Open MPI: JAX finds the others")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 is to be reached")
    group.add_argument("--processes", type=int, metavar="N", help="elsewhere: how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="elsewhere: which one this is, from 0")


def run(args: argparse.Namespace) -> int:
    """Exit code 0, or 130 when a signal ended the run early (its state is saved)."""
    config = load_config(args.config, args.set)
    from aromni_jax.parallel import failing_alone, initialize_distributed
    from aromni_jax.training import train

    address = (args.coordinator, args.processes, args.process_id)
    if args.distributed or any(part is not None for part in address):
        initialize_distributed(*address)
    with failing_alone():
        result = train(
            config,
            args.run_dir,
            codebook_kc=codebook(config),
            sampler=sampler(config, args.run_dir),
            profile=args.profile,
        )
    return 130 if result.stopped_by else 0


def steps(text: str) -> tuple[int, int]:
    """`FROM:TO`, both included, counted from 1; for argparse."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected FROM:TO, as 10:12")
    return int(first), int(last)


def sampler(config: RunConfig, run_directory: pathlib.Path) -> Sampler | None:
    """Who answers held-out prompts while training, if `train.sample_every` asks for it."""
    if not config.train.sample_every:
        return None
    from aromni_jax.evaluation.progress_samples import ProgressSamples
    from aromni_jax.parallel import together

    try:
        with together("samples"):  # all of several processes make them, or none
            return ProgressSamples(config, run_directory)
    except UserError as error:
        print(f"note: no samples: {error}")
        return None


def codebook(config: RunConfig):
    """The image codec's codebook, float [codes, width], where the config has a perceptual loss; else None."""
    if not config.loss.perceptual_weight:
        return None
    import numpy as np

    from aromni_jax.codecs import ImageCodec

    return np.asarray(ImageCodec.load(config.world).codebook)
