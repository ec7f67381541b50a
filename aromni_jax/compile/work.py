"""What a compiled program computes and sends, told from its text as in `compile.hlo`, with loops multiplied out."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping

from aromni_jax.compile.hlo import Program, array_sizes

_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# Products of [queries, head dim, keys] that one call of an attention kernel makes.
_KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}


def matmul_flops(program: Program) -> float:
    """Of the matrix products of one chip; a TPU's text has them as convolutions. Kernels are not in it."""
    return sum(
        times * _product(line.type, [computation.instructions[name].type for name in line.operands], line.rest)
        for computation, line, times in program.visits()
        if line.opcode in ("convolution", "dot")
    )


def kernel_flops(program: Program) -> float:
    """Of the attention kernels of one chip: two products forward, five backward, of the blocks that causality leaves.

    Read from the kernels' operands: the first, int8 [., ., n], says that keys are cut in n blocks; queries, keys and
    values are the first floats, the values [..., keys, head dim] however the others lie.
    """
    total = 0.0
    for _, line, times in program.visits():
        products = [number for name, number in _KERNEL_PRODUCTS.items() if line.name.startswith(name)]
        if line.opcode != "custom-call" or not products:
            continue
        found = re.search(r"operand_layout_constraints=\{(.*?\})\}", line.rest)
        assert found, line.name
        arrays = _shapes(found.group(1))
        blocks = arrays[0][1][-1]
        queries, _, values = [dims for dtype, dims in arrays if dtype in ("bf16", "f32") and len(dims) >= 3][:3]
        share = (blocks + 1) / (2 * blocks)
        total += times * products[0] * 2 * math.prod(queries) * values[-2] * share
    return total


def collectives(program: Program) -> dict[str, float]:
    """Kind -> bytes that one chip receives in one call, kinds that do not occur left out.

    A transfer that the compiler does in parts, hidden behind products, stands once in each of them; it counts once.
    """
    found: dict[str, float] = collections.defaultdict(float)
    seen: set[str] = set()
    for computation, line, times in program.visits():
        kind = line.opcode.removesuffix("-start")
        if kind not in _KINDS:
            continue
        root = computation.root
        if kind == "all-reduce" and root.opcode == "dynamic-slice" and root.operands[0] == line.name:
            kind = "reduce-scatter"  # so a TPU's text writes it inside a fusion
        chain = re.search(r"channel_id=\d+,.*chain_id=\"\d+\"", line.rest)
        if chain and chain.group() in seen:
            continue
        if chain:
            seen.add(chain.group())
        sent = sum(array_sizes(computation.instructions[name].type) for name in line.operands)
        found[kind] += times * _received(kind, sent, _group_size(line.rest))
    return dict(found)


def _received(kind: str, operands: float, group: int) -> float:
    """Bytes that reach a chip at least, of a group of so many, when each brings operands of so many bytes."""
    if kind == "all-gather":
        return operands * (group - 1)
    if kind == "collective-permute":
        return operands
    share = (group - 1) / group
    return operands * share * (2 if kind == "all-reduce" else 1)


def _group_size(rest: str) -> int:
    """Devices in each of the groups of a collective, however its text writes them."""
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)
    if axes:
        sizes = dict(re.findall(r"('\w+')=(\d+)", axes.group(1)))
        return math.prod(int(sizes[name]) for name in re.findall(r"'\w+'", axes.group(2)))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)
    if iota:
        return int(iota.group(2))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return listed.group(1).count(",") + 1 if listed else 1


def _product(result: str, operands: list[str], rest: str) -> float:
    """FLOPs of one dot or convolution: 2 per multiplication with what is not padding."""
    (_, out), (_, left), (_, right) = _shapes(result)[0], _shapes(operands[0])[0], _shapes(operands[1])[0]
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    if contracted:
        return 2.0 * math.prod(out) * math.prod(left[int(axis)] for axis in contracted.group(1).split(",") if axis)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    assert labels, rest[:200]
    of_left, of_right, of_out = labels.groups()
    total = 2.0 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    window = _window(rest)
    for axis in sorted(set(of_out) - set("bf")):
        place = int(axis)
        sizes = {name: int(values[place]) for name, values in window.items() if name != "pad"}
        low = int(window["pad"][place].split("_")[0]) if "pad" in window else 0
        reach = (left[of_left.index(axis)] - 1) * sizes.get("lhs_dilate", 1) + 1
        steps = [
            at * sizes.get("stride", 1) - low + tap * sizes.get("rhs_dilate", 1)
            for at in range(out[of_out.index(axis)])
            for tap in range(right[of_right.index(axis)])
        ]
        total *= sum(0 <= step < reach and step % sizes.get("lhs_dilate", 1) == 0 for step in steps)
    return total


def _window(rest: str) -> Mapping[str, list[str]]:
    """Of a convolution: name -> a word per spatial axis."""
    found = re.search(r"window=\{([^}]*)\}", rest)
    words = [word.split("=") for word in found.group(1).split()] if found else []
    return {name: values.split("x") for name, values in words}


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """dtype and dimensions of every array in a type."""
    arrays = re.findall(r"([a-z]\w*)\[([\d,]*)\]", text)
    return [(dtype, tuple(int(dim) for dim in dims.split(",") if dim)) for dtype, dims in arrays]
