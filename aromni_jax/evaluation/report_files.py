"""The files of a run folder as a report reads them: whole, or named with what is wrong in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aromni_jax.errors import UserError


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; UserError for a file that holds anything else, or cannot be read."""
    found = _json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected one JSON object, found {type(found).__name__}; write it again")
    return found


def read_list(path: Path) -> list[Any]:
    """A JSON list; [] where the file does not exist; UserError as `read_object`."""
    found = _json(path) if path.exists() else []
    if not isinstance(found, list):
        raise UserError(f"{path}: expected a JSON list, found {type(found).__name__}; write it again")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file; a torn last line (a killed run) is left out; UserError as `read_object`."""
    rows = [(at, row) for at, row in enumerate(_text(path).splitlines(), start=1) if row.strip()]
    found = []
    for at, row in rows:
        try:
            line = json.loads(row)
        except (ValueError, RecursionError) as error:
            if at == rows[-1][0]:
                break
            raise UserError(f"{path}, line {at}: not JSON ({getattr(error, 'msg', error)}); delete the line") from None
        if not isinstance(line, dict):
            raise UserError(f"{path}, line {at}: expected one JSON object; delete the line")
        found.append(line)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: finish the run, or give the folder of a finished one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); write it again") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError without a place
        line, reason = getattr(error, "lineno", 1), getattr(error, "msg", error)
        raise UserError(f"{path}, line {line}: not JSON ({reason}); write it again") from None
