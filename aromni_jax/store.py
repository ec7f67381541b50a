"""How arrays and their description lie on disk: Orbax for the arrays, one JSON object beside them.

Shared by `training.checkpoints` (a run's steps) and `convert.loading` (a model folder), which reads both.
Only nested dicts of arrays are stored: readable by anyone, untouched by changes of a library's classes.

    run/checkpoints/<step>/{params,optimizer,metadata}     one complete checkpoint of a run
        (and `average` with train.ema_decay)
    model/{params,aromni.json}                             a model to use or to pass on
"""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import pathlib
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from aromni_jax.errors import UserError

LAYOUT_VERSION = 1
CHECKPOINTS = "checkpoints"
PARAMS = "params"
OPTIMIZER = "optimizer"
AVERAGE = "average"
METADATA = "metadata"
MODEL_FILE = "aromni.json"

_WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
_BLOCK = 2**16  # words per step of a checksum: they stay in the cache

Tree = Any
Result = TypeVar("Result")


class Damaged(UserError):
    """Arrays on disk that cannot be read or whose bits have changed; an older checkpoint may do."""


def to_nested_dict(tree: Tree) -> dict[str, Any]:
    """Any pytree as a dict of dicts; empty nodes vanish, tuple positions become their number."""
    nested: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *parents, last = (_key(entry) for entry in path)
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def from_nested_dict(like: Tree, nested: Mapping[str, Any]) -> Tree:
    """Inverse of `to_nested_dict`; `like` gives the structure."""

    def take(path: tuple[Any, ...], _: Any) -> Any:
        node: Any = nested
        for entry in path:
            node = node[_key(entry)]
        return node

    return jax.tree_util.tree_map_with_path(take, like)


def leaf_names(tree: Tree) -> dict[str, Any]:
    """Leaves by slash-joined path, in tree order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(_key(entry) for entry in path): leaf for path, leaf in leaves}


def checksums(tree: Tree) -> dict[str, int]:
    """One 32-bit number per array, over its bits and their places: the same on any mesh.

    Orbax does not notice a flipped bit in a data file; these numbers do (any change within one 32-bit word is caught).
    Arrays of an accelerator, or of several hosts, are summed where they lie; those of a CPU without compiling anything.
    """
    leaves = leaf_names(tree)
    if all(array.is_fully_addressable and _on_cpu(array) for array in leaves.values()):
        return {name: checksum(np.asarray(array)) for name, array in leaves.items()}
    sums = jax.device_get(jax.jit(lambda arrays: jax.tree.map(_device_checksum, arrays))(leaves))
    return {name: int(value) for name, value in sums.items()}


def check_shapes(directory: pathlib.Path, expected: Tree) -> Tree:
    """Compare the arrays in `directory` with the names and shapes of `expected`; returns their metadata.

    Raises:
      Damaged: no readable arrays.
      UserError: other names or shapes.
    """
    with _reader() as reader:
        found, _ = attempt(lambda: reader.metadata(directory.absolute()).item_metadata.tree)
    if found is None:
        raise Damaged(f"{directory}: holds no readable arrays")
    stored, wanted = leaf_names(found), leaf_names(expected)
    for name in sorted(set(stored) ^ set(wanted)):
        raise UserError(f"{directory}: parameter {name} is only in the {'file' if name in stored else 'config'}")
    for name, array in wanted.items():
        if tuple(stored[name].shape) != tuple(array.shape):
            raise UserError(
                f"{directory}: parameter {name} has shape {tuple(stored[name].shape)}, its config says {array.shape}"
            )
    return found


def read_arrays(directory: pathlib.Path, abstract: Tree, expected_checksums: Mapping[str, int]) -> Tree:
    """Read arrays as `abstract` (ShapeDtypeStructs with shardings) says and compare their checksums.

    Dtypes may differ from the stored ones (they are cast after the check).

    Raises:
      Damaged: unreadable, or other bits than were written.
      UserError: other names or shapes than asked for.
    """
    tree = read_unchecked(directory, abstract)
    check_bits(directory, tree, expected_checksums)
    return jax.tree.map(lambda array, want: array.astype(want.dtype), tree, abstract)


def read_unchecked(directory: pathlib.Path, abstract: Tree) -> Tree:
    """Read arrays in their stored dtypes. Of several processes each reads its shards, and waits for no other.

    Raises:
      Damaged: unreadable.
      UserError: other names or shapes than asked for.
    """
    as_stored = jax.tree.map(
        lambda want, have: jax.ShapeDtypeStruct(want.shape, have.dtype, sharding=want.sharding),
        abstract,
        check_shapes(directory, abstract),
    )
    with _reader() as reader:
        tree, _ = attempt(lambda: reader.restore(directory.absolute(), as_stored))
    if tree is None:
        raise Damaged(f"{directory}: cannot be read, a file is missing, cut off or damaged")
    return tree


def _reader() -> ocp.StandardCheckpointer:
    """For this process alone: Orbax's own waits, at the end of reading, for all others, also for one that could not."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def check_bits(directory: pathlib.Path, tree: Tree, expected_checksums: Mapping[str, int]) -> None:
    """Damaged if the arrays read from `directory` are not what was written; every process of several has to call it."""
    for name, value in checksums(tree).items():
        if expected_checksums.get(name) != value:
            raise Damaged(f"{directory}: array {name} is damaged (its checksum differs)")


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """One JSON object; Damaged if missing or broken."""
    try:
        values = json.loads(file.read_text())
    except OSError as error:
        raise Damaged(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{file}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise Damaged(f"{file}: not a JSON object")
    return values


def read_description(file: pathlib.Path) -> dict[str, Any]:
    """The JSON object beside arrays; UserError if of an unknown layout version, else as `read_json`."""
    values = read_json(file)
    version = values.get("layout_version")
    if version != LAYOUT_VERSION:
        raise UserError(f"{file}: layout version {version} is unknown here (expected {LAYOUT_VERSION})")
    return values


def write_json(file: pathlib.Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write through a temporary name, so that readers see the whole file or none; UserError if that fails."""
    write_text(file, json.dumps(values, indent=1, sort_keys=True) + "\n")


def write_text(file: pathlib.Path, text: str) -> None:
    """Write through a temporary name, so that readers see the whole file or none; UserError if that fails."""
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.write_text(text)
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise unwritable(file, error) from None


def append(file: io.FileIO, data: bytes) -> None:
    """Add to the end of an unbuffered file all of the data, or nothing and OSError."""
    before = file.seek(0, os.SEEK_END)
    rest = memoryview(data)
    try:
        while rest:  # a full disk takes a part first, and says so when asked to take the rest
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(before)
        raise


def append_line(file: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Add a JSON object as a line to the end of a file, whole or not at all; UserError if the disk does not take it.

    The rest of a line that a crash of the machine has torn makes way for it.
    """
    try:
        with open(file, "a+b", buffering=0) as out:
            end = out.seek(0, os.SEEK_END)
            if end:
                out.seek(end - 1)
                if out.read(1) != b"\n":
                    out.seek(0)
                    out.truncate(out.readall().rfind(b"\n") + 1)
            append(out, json.dumps(values).encode() + b"\n")
    except OSError as error:
        raise unwritable(file, error) from None


def unwritable(file: pathlib.Path, error: OSError) -> UserError:
    """The error for a file that cannot be written; the system's own often does not name it."""
    return UserError(f"cannot write {file} ({error.strerror or error}); check the folder and the free space")


def complete_steps(run_directory: pathlib.Path) -> list[int]:
    """Steps with a complete checkpoint in a run folder, oldest first."""
    folder = run_directory / CHECKPOINTS
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def failure_reason(error: BaseException) -> str:
    """What the system said; Orbax and TensorStore bury it in long messages."""
    text = str(error).strip()
    for known in ("No space left on device", "File too large", "Disk quota exceeded", "Permission denied"):
        if known in text:
            return known
    return (text.splitlines()[0] if text else type(error).__name__)[:200]


def _without_orbax(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook for what cannot be raised, but for the tasks that a failed call of Orbax has left."""

    def hear(lost: Any) -> None:
        code = getattr(lost.object, "cr_code", None)
        left = code is not None and "orbax" in code.co_filename
        if not left and str(lost.exc_value) != "Event loop is closed":
            hook(lost)

    return hear


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"unknown tree path entry {entry!r}")


def _on_cpu(array: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def checksum(array: np.ndarray, first: int = 0) -> int:
    """The number of one array, of any size without copies of it: sum of word * (2 * place + 1) mod 2**32.

    Sums of parts are the sum of the whole: `first` is the place of the part's first number in the whole.
    """
    first *= max(1, array.dtype.itemsize // 4)  # numbers of eight bytes are two words each
    words = np.ascontiguousarray(array).reshape(-1).view(_WORDS[array.dtype.itemsize])
    odd = np.arange(1, 2 * _BLOCK, 2, dtype=np.uint32)
    total = 0
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK].astype(np.uint32)
        total += int(np.dot(block, odd[: len(block)]))
        total += 2 * (first + start) * int(np.sum(block, dtype=np.uint64))
    return total % 2**32


def _device_checksum(array: jax.Array) -> jax.Array:
    """The same, traced. Places are built per axis: no reshape, so no gathering of shards."""
    bits = array.view({1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros((1,) * array.ndim, jnp.uint32)
    stride = 1
    for axis in reversed(range(array.ndim)):
        steps = jnp.arange(array.shape[axis], dtype=jnp.uint32) * jnp.array(stride % 2**32, jnp.uint32)
        place = place + steps.reshape([-1 if other == axis else 1 for other in range(array.ndim)])
        stride *= array.shape[axis]
    # The weights are odd, hence invertible: any change within one word is seen.
    return jnp.sum(bits * (place * jnp.array(2, jnp.uint32) + jnp.array(1, jnp.uint32)), dtype=jnp.uint32)


def attempt(action: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """Result of an Orbax call, or its error.

    Without Orbax's warnings and the pages of tracebacks that its abandoned tasks print: our one line says it all.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda lost: hook(lost) if issubclass(lost.exc_type, KeyboardInterrupt) else None
    try:
        try:
            return action(), None
        except Exception as error:  # whatever the libraries below raise
            failure = error.with_traceback(None)
        gc.collect()  # the abandoned tasks go now, while their last words are not heard,
        hook, levels[1] = _without_orbax(hook), logging.CRITICAL  # or, on a busy machine, later
        return None, failure
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
