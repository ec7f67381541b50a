"""How worlds read their media folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aromni_jax.errors import UserError


def read_json(path: Path, repair: str) -> Any:
    """The value in a JSON file; UserError saying how to `repair` it when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {repair}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}): {repair}") from error
