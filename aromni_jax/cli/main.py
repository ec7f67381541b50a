"""`aromni`: finds the subcommand, runs it, and turns errors into one line and an exit code.

Exit codes: 0 success, 1 failed work, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

import aromni_jax
from aromni_jax.errors import UserError
from aromni_jax.signals import NotedSignals, heard_everywhere

# Name -> one line of help. Each is a module of this folder with `add_arguments(parser)`, `run(args) -> int` and
# `EXAMPLE`; a module is imported only when its command is called, so that `--help` answers at once.
COMMANDS = {
    "demo": "pretrain a small any-to-any model on this machine, judge it, and write a report",
    "prepare": "turn raw media into token records and packed rows",
    "train": "pretrain or tune from a config file; continues where it stopped",
    "report": "one self-contained page of a run, finished or not: curves, samples, time, machine",
    "evaluate": "score a model on the held-out part of a world",
    "generate": "asr, tts, caption, t2i, s2i or i2s on files",
    "chat": "talk to a model in text, speech and pictures",
    "codec": "pictures and sound files to codes and back, with figures or a page of what is lost",
    "convert": "a checkpoint of any format to any other: this project's, Hugging Face's, Meta's",
    "compile": "ahead of time for TPUs that are not there: memory per chip, bytes moved, fit or no fit",
    "inspect": "look at a checkpoint, a record file or a token stream",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    try:
        with heard_everywhere():
            return _run(argv)
    except KeyboardInterrupt:
        print("aromni: interrupted", file=sys.stderr)
        return 130


def _run(argv: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer in letters that the terminal does not know is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="aromni", description=aromni_jax.__doc__)
    parser.add_argument("--version", action="version", version=f"aromni_jax {aromni_jax.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in words if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"aromni_jax.cli.{name}") if name == wanted else None
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {module.EXAMPLE}" if module else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--debug", action="store_true", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
        if module:
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(words)
    try:
        _load_jax()
        return args.run(args)
    except UserError as error:
        if args.debug:
            raise
        return _fail(str(error))
    except BrokenPipeError:  # the reader has seen enough: `aromni inspect ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 1
    except OSError as error:  # a full disk, a missing permission: the system's words and the file
        if args.debug:
            raise
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}")


def _load_jax() -> None:
    """Before a command does: an interrupt inside of jaxlib's start would end the process with a segmentation fault."""
    with NotedSignals() as signals:
        importlib.import_module("jax")
    if signals.name:
        raise KeyboardInterrupt(signals.name)


def _fail(message: str) -> int:
    print(f"aromni: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
