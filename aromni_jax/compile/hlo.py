"""What a compiled program moves to and from HBM, told from its text.

XLA's own cost analysis counts a loop once. Here bodies count as often as they run; an operand of which only slices are
read counts as the slices, a buffer updated in place as the update. What the compiler keeps in on-chip memory (layouts
marked S(1) and above) is free, and so is everything inside a fusion; of two branches the dearer one counts. Padding of
tiles is not counted.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}  # others by the number in their name
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "iota",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes to and from the HBM of one chip, and cycles by the compiler's own estimate."""

    bytes: float = 0.0
    cycles: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.cycles + other.cycles)

    def __mul__(self, times: float) -> Traffic:
        return Traffic(self.bytes * times, self.cycles * times)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    rest: str

    def called(self, key: str) -> str | None:
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else None


@dataclasses.dataclass(frozen=True)
class _Computation:
    instructions: dict[str, _Instruction]
    root: _Instruction
    parameters: dict[int, str]

    def users(self, name: str) -> list[_Instruction]:
        return [instruction for instruction in self.instructions.values() if name in instruction.operands]

    def hands_on(self, name: str) -> bool:
        """Whether the result is this, in another shape or with a part updated."""
        at = self.root
        while at.name != name and at.opcode in ("bitcast", "dynamic-update-slice"):
            at = self.instructions[at.operands[0]]
        return at.name == name


class Program:
    """The text of a compiled program (`jax.stages.Compiled.as_text`).

    Args:
      trips: how often a loop runs of which the text does not say it.
    """

    def __init__(self, text: str, trips: int) -> None:
        self._trips = trips
        self._known: dict[str, Traffic] = {}
        self._computations: dict[str, _Computation] = {}
        lines: list[str] = []
        name = self._entry = ""
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                name, lines = head.group(2), []
                self._entry = name if head.group(1) else self._entry
            elif line == "}" and name:
                self._computations[name] = _parse(lines)
                name = ""
            elif name:
                lines.append(line)

    def traffic(self) -> Traffic:
        """Of one call."""
        return self._of(self._entry)

    def outside_loops(self) -> Traffic:
        """Of what a call does once."""
        computation = self._computations[self._entry]
        once = [line for line in computation.instructions.values() if line.opcode != "while"]
        return _total(self._instruction(computation, line) for line in once)

    def visits(self) -> Iterator[tuple[_Computation, _Instruction, int]]:
        """Every instruction of one call, with its computation and how often it runs.

        Those inside of fusions, loops and dearer branches, too.
        """
        yield from self._visits(self._entry, 1)

    def _visits(self, name: str, times: int) -> Iterator[tuple[_Computation, _Instruction, int]]:
        computation = self._computations[name]
        for line in computation.instructions.values():
            yield computation, line, times
            if line.opcode == "while":
                body, condition = line.called("body"), line.called("condition")
                assert body and condition, line
                yield from self._visits(body, times * self._runs(self._computations[condition]))
            elif line.opcode == "conditional":
                yield from self._visits(self._dearest(line), times)
            elif line.opcode in ("fusion", "call", "async-start"):
                inner = line.called("calls") or line.called("to_apply")
                if inner:
                    yield from self._visits(inner, times)

    def _of(self, name: str) -> Traffic:
        if name not in self._known:
            computation = self._computations[name]
            lines = computation.instructions.values()
            self._known[name] = _total(self._instruction(computation, line) for line in lines)
        return self._known[name]

    def _instruction(self, computation: _Computation, line: _Instruction) -> Traffic:
        if line.opcode == "while":
            body, condition = line.called("body"), line.called("condition")
            assert body and condition, line
            return (self._of(body) + self._of(condition)) * self._runs(self._computations[condition])
        if line.opcode == "conditional":
            return self._of(self._dearest(line))
        if line.opcode in ("call", "async-start"):
            name = line.called("to_apply") or line.called("calls")
            return self._of(name) if name else Traffic()
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line.rest)
        return Traffic(self._bytes(computation, line), float(cycles.group(1)) if cycles else 0.0)

    def _dearest(self, conditional: _Instruction) -> str:
        """The branch that counts."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", conditional.rest)
        names = listed.group(1).replace("%", "").split(", ") if listed else []
        names += [name for key in ("true_computation", "false_computation") if (name := conditional.called(key))]
        return max(names, key=lambda name: (self._of(name).bytes, self._of(name).cycles))

    def _runs(self, condition: _Computation) -> int:
        """How often a loop runs: up to the number that its counter, which begins at 0, is compared with."""
        if condition.root.opcode == "compare" and "direction=LT" in condition.root.rest:
            limit = condition.instructions[condition.root.operands[1]]
            if limit.opcode == "constant":
                return int(limit.literal)
        return self._trips

    def _bytes(self, computation: _Computation, line: _Instruction) -> float:
        if line.opcode in _FREE or line.opcode.endswith(("-done", "-update")):
            return 0.0
        operands = [computation.instructions[name].type for name in line.operands if name in computation.instructions]
        if line.opcode == "fusion":
            inner = self._computations[line.called("calls") or ""]
            read = sum(self._read(inner, n, of) for n, of in enumerate(operands))
            return read + self._written(inner, inner.root, line.type)
        if line.opcode in ("dynamic-slice", "slice", "gather"):
            return (array_sizes(line.type) if _in_hbm(operands[0]) else 0) + _size(line.type)
        if line.opcode in ("dynamic-update-slice", "scatter"):
            update = operands[1 if line.opcode == "dynamic-update-slice" else 2]
            return _size(update) + (array_sizes(update) if _in_hbm(line.type) else 0)
        if line.opcode == "slice-start":  # (operand, result, context)
            part = _ARRAY.findall(line.type)[1]
            read = _array_size(*part, everywhere=True) if _in_hbm(operands[0]) else 0
            return read + _array_size(*part, everywhere=False)
        if line.opcode.endswith("-start"):  # of copies and collectives: (operand or result, result, context)
            results = _ARRAY.findall(line.type)
            written = results[0] if line.opcode == "copy-start" else results[min(1, len(results) - 1)]
            return sum(map(_size, operands)) + _array_size(*written, everywhere=False)
        return sum(map(_size, operands)) + _size(line.type)

    def _read(self, computation: _Computation, number: int, of: str) -> float:
        """Bytes that a fused computation reads of its parameter `number`, which lies where `of` says."""
        if not _in_hbm(of):
            return 0.0
        whole = array_sizes(of)
        return min(whole, self._used(computation, computation.parameters[number], whole))

    def _used(self, computation: _Computation, name: str, whole: float) -> float:
        total = 0.0
        for user in computation.users(name):
            place = user.operands.index(name)
            if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                total += array_sizes(user.type)
            elif user.opcode == "bitcast" or (user.opcode == "dynamic-update-slice" and place == 0):
                total += self._used(computation, user.name, whole)  # an update in place reads nothing by itself
            elif user.opcode == "tuple":
                continue
            elif user.opcode == "fusion":
                inner = self._computations[user.called("calls") or ""]
                total += self._used(inner, inner.parameters[place], whole)
                if inner.hands_on(inner.parameters[place]):
                    total += self._used(computation, user.name, whole)
            else:
                total += whole
        return total

    def _written(self, computation: _Computation, root: _Instruction, of: str) -> float:
        """Bytes that a fusion of this root writes to a result of type `of`."""
        if root.opcode == "tuple":
            arrays = [match.group(0) for match in _ARRAY.finditer(of)]
            roots = [computation.instructions[name] for name in root.operands]
            return sum(self._written(computation, one, array) for one, array in zip(roots, arrays, strict=True))
        if not _in_hbm(of):
            return 0.0
        if root.opcode == "bitcast":
            source = computation.instructions[root.operands[0]]
            return self._written(computation, source, of) if source.opcode != "parameter" else array_sizes(of)
        if root.opcode == "dynamic-update-slice":
            return array_sizes(computation.instructions[root.operands[1]].type)
        return array_sizes(of)


def _total(parts: Iterable[Traffic]) -> Traffic:
    return sum(parts, Traffic())


def _parse(lines: Sequence[str]) -> _Computation:
    instructions: dict[str, _Instruction] = {}
    parameters: dict[int, str] = {}
    root = None
    for line in lines:
        match = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
        if not match:
            continue
        text = line[match.end() :]
        end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
        kind, text = text[:end], text[end:].lstrip()
        start = text.index("(")
        opcode, text = text[:start], text[start:]
        close = _closing(text)
        inside, rest = text[1:close], text[close + 1 :]
        made = _Instruction(match.group(2), kind, opcode, tuple(re.findall(r"%([\w.\-]+)", inside)), inside, rest)
        instructions[made.name] = made
        if opcode == "parameter":
            parameters[int(inside)] = made.name
        if match.group(1):
            root = made
    assert root is not None, "every computation has a root"
    return _Computation(instructions, root, parameters)


def _closing(text: str) -> int:
    """Index of the bracket that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    raise AssertionError(f"no closing bracket in {text[:80]}")


def _in_hbm(kind: str) -> bool:
    return not re.search(r"S\([1-9]\d*\)", kind)


def _size(kind: str) -> float:
    """Bytes of the arrays in a type that lie in HBM."""
    return sum(_array_size(*array, everywhere=False) for array in _ARRAY.findall(kind))


def array_sizes(kind: str) -> float:
    """Bytes of the arrays in a type, wherever they lie."""
    return sum(_array_size(*array, everywhere=True) for array in _ARRAY.findall(kind))


def _array_size(dtype: str, dims: str, layout: str, *, everywhere: bool) -> float:
    if not everywhere and not _in_hbm(layout):
        return 0.0
    bits = re.search(r"\d+", dtype)
    width = _BYTES.get(dtype, int(bits.group()) / 8 if bits else 0)
    return width * math.prod(int(dim) for dim in dims.split(",") if dim)
