"""How the benchmarks end: FILE.json with everything, FILE.md with the table, lines on stderr meanwhile."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from aromni_jax import store
from aromni_jax.errors import UserError

Say = Callable[[str], None]
Result = dict[str, Any]


def clocked() -> Say:
    """Prints a line on stderr behind the seconds since this call."""
    started = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    return say


def write(
    name: str,
    out: pathlib.Path,
    title: str,
    run: Callable[[], Result],
    markdown: Callable[[Result], str],
    plot: Callable[[pathlib.Path, Result], None] | None = None,
) -> int:
    """Run, write `out` and what goes beside it, and print the table.

    Args:
      name: of the program, for its error.
      run: what the JSON file is to hold; {} = nothing is to be written.

    Returns:
      Exit code 0, or 1 with one line of reason.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        result = run()
        if not result:
            return 0
        store.write_json(out, result)
        text = markdown(result)
        store.write_text(out.with_suffix(".md"), f"# {title}\n\n{text}")
        if plot is not None:
            plot(out.with_suffix(".png"), result)
    except (UserError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    print(text, end="")
    return 0
