"""Foreign JSON, read with care: every value is asked for by its kind, and a wrong one is named."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from aromni_jax import store
from aromni_jax.errors import UserError

_REQUIRED: Any = object()


class Fields:
    """An object of a JSON file. `null` counts as missing.

    Attributes:
      values: the plain dict. where: "FILE" or "FILE: key", for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    @classmethod
    def read(cls, file: pathlib.Path) -> Fields:
        """UserError if the file is no JSON object."""
        return cls(store.read_json(file), str(file))

    def integer(self, key: str, default: int = _REQUIRED, least: int = 1) -> int:
        """A whole number, at least `least`."""
        value = self._value(key, default)
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53
        return int(value) if good else self._refuse(key, f"a whole number from {least}")

    def number(self, key: str, default: float = _REQUIRED) -> float:
        """A positive, finite number."""
        value = self._value(key, default)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e300
        return float(value) if good and math.isfinite(value) else self._refuse(key, "a positive number")

    def boolean(self, key: str, default: bool = _REQUIRED) -> bool:
        """true or false."""
        value = self._value(key, default)
        return value if isinstance(value, bool) else self._refuse(key, "true or false")

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A string."""
        value = self._value(key, default)
        return value if isinstance(value, str) else self._refuse(key, "a string")

    def object(self, key: str) -> Fields:
        """An object; an empty one where there is none."""
        value = self._value(key, {})
        return Fields(value if isinstance(value, dict) else self._refuse(key, "an object"), f"{self.where}: {key}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise UserError(f"{self.where}: key {key} is missing")
        return default

    def _refuse(self, key: str, expected: str) -> Any:
        shown = repr(self.values[key])
        raise UserError(f"{self.where}: {key} is {shown[:60]}{'...' if len(shown) > 60 else ''}; expected {expected}")
