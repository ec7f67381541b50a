"""Checkpoints of a run: asynchronous, complete or not there, checked bit by bit when read.

A step holds `params`, `optimizer` (with the step counters), `average` if the run keeps one, and `metadata` (config,
vocabulary, data state, checksums).
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import time
import typing
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from aromni_jax import store
from aromni_jax.config import RunConfig
from aromni_jax.errors import UserError
from aromni_jax.model import trained
from aromni_jax.parallel import exchange, together
from aromni_jax.training.state import TrainState
from aromni_jax.vocabulary import JointVocabulary

# Keys of the model config that may change between runs: they alter speed and memory, not the meaning of the parameters.
_FREE_KEYS = {"compute_dtype", "attention", "remat", "scan_layers", "logits_tile", "max_positions"}
_SEEN_SECONDS = 15.0  # for a checkpoint to be seen by all hosts
_T = TypeVar("_T")


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run_directory: pathlib.Path, keep: int) -> None:
        self._run = run_directory
        self._folder = (run_directory / store.CHECKPOINTS).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._manager = self._open()
        self._saving: int | None = None
        self._newest: int | None = None  # saved or restored by this object: what all processes agree on

    def save(
        self,
        state: TrainState,
        config: RunConfig,
        vocabulary: JointVocabulary,
        data: Mapping[str, Any],
        codecs: Mapping[str, str] | None = None,
    ) -> None:
        """Start writing `state`; returns when the arrays are copied, and the files follow in the background.

        Args:
          data: JSON state of the data pipeline.
          codecs: fingerprints of the codecs that the data was made with.

        Raises:
          UserError: this write, or the one before, could not be completed (full disk, no permission).
        """
        step = int(state.step)
        if step == self._newest:
            return
        arrays = _split(state)
        metadata = {
            "layout_version": store.LAYOUT_VERSION,
            "step": step,
            "config": config.to_dict(),
            "vocabulary": vocabulary.to_dict(),
            "vocabulary_fingerprint": vocabulary.fingerprint(),
            "data": dict(data),
            "codecs": dict(codecs or {}),
            "checksums": {name: store.checksums(tree) for name, tree in arrays.items()},
        }
        metadata["checksum"] = _checksum(metadata)
        self.wait()
        self._saving = self._newest = step
        saves = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items = ocp.args.Composite(**saves, metadata=ocp.args.JsonSave(metadata))
        self._attempt(lambda: self._manager.save(step, args=items))

    def poll(self) -> None:
        """UserError if a write in the background has failed; returns at once."""
        self._attempt(self._manager.check_for_errors)

    def wait(self) -> None:
        """Until the last save is complete on disk; UserError if it failed."""
        self._attempt(self._manager.wait_until_finished)
        self.poll()

    def close(self) -> None:
        """Wait, and end the background threads."""
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return store.complete_steps(self._run)

    def restore(
        self, abstract: TrainState, config: RunConfig, vocabulary: JointVocabulary, warn: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is complete and undamaged, and its metadata; None in a fresh run folder.

        Of several processes each reads its part; one that is damaged, or missing, for one of them is so for all.

        Args:
          abstract: ShapeDtypeStructs with the shardings of this run's mesh, which may differ from the saved one.
          warn: gets one line for every damaged checkpoint; that one is set aside under the name `damaged-<step>`.

        Raises:
          UserError: the run has another vocabulary, model or optimiser, or every checkpoint is damaged.
        """
        steps = self._steps_of_all()
        for step in reversed(steps):
            directory = self._folder / str(step)
            try:
                read = self._agreed(step, functools.partial(_read, directory, abstract, config, vocabulary))
                state, metadata = self._agreed(step, functools.partial(_checked, directory, *read))
            except store.Damaged as error:
                warn(f"warning: {error}; falling back to an older checkpoint")
                self._set_aside(directory)
            else:
                self._newest = step
                return _cast(state, abstract), metadata
        if steps:
            raise UserError(f"{self._run}: none of the checkpoints {steps} can be read; start again in a new folder")
        return None

    def _steps_of_all(self) -> list[int]:
        """Steps that any process sees, oldest first; a little later where a network file system is behind."""
        seen = [set(json.loads(steps)) for steps in exchange("checkpoints", json.dumps(self.steps()))]
        found = set().union(*seen)
        end = time.monotonic() + _SEEN_SECONDS
        while not found <= set(self.steps()) and time.monotonic() < end:
            time.sleep(0.2)
        return sorted(found)

    def _agreed(self, step: int, action: Callable[[], _T]) -> _T:
        """What the action gives; Damaged, with the words of the first process that found damage, if any did."""
        result, damage = None, ""
        with together(f"checkpoint of step {step}"):
            try:
                result = action()
            except store.Damaged as error:
                damage = str(error)
        damages = exchange("damage", damage)
        for index, found in enumerate(damages):
            if found:
                raise store.Damaged(found if len(damages) == 1 else f"process {index} of {len(damages)}: {found}")
        return typing.cast(_T, result)

    def _open(self) -> ocp.CheckpointManager:
        # With the processes named, Orbax meets them over the network by name and with a time limit; otherwise it does
        # so by a collective of the devices, which waits for ever. It makes no folder then.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=set(range(jax.process_count())), barrier_sync_key_prefix="checkpoints"
            ),
        )
        return ocp.CheckpointManager(
            self._folder, options=options, item_names=(store.PARAMS, store.OPTIMIZER, store.AVERAGE, store.METADATA)
        )

    def _set_aside(self, directory: pathlib.Path) -> None:
        with together("damaged checkpoint"):
            if jax.process_index() == 0 and directory.exists():
                target = directory.with_name(f"damaged-{directory.name}")
                shutil.rmtree(target, ignore_errors=True)
                os.rename(directory, target)
        self._manager.reload()

    def _attempt(self, write: Callable[[], object]) -> None:
        _, error = store.attempt(write)
        if error is not None:
            raise self._failed(error)

    def _failed(self, error: Exception) -> UserError:
        """One line, after removing what the failed write left."""
        complete = self.steps()
        for partial in self._folder.iterdir():
            name = partial.name
            if name.split(".")[0] == str(self._saving) and self._saving not in complete:
                shutil.rmtree(partial, ignore_errors=True)
        kept = f"the one of step {complete[-1]} is intact" if complete else "there is no older one"
        reason = store.failure_reason(error)
        return UserError(
            f"{self._folder}: the checkpoint of step {self._saving} could not be written ({reason}); {kept}: "
            "make room, then start the same command again"
        )


def _metadata(step_directory: pathlib.Path) -> dict[str, Any]:
    """Metadata of one checkpoint; Damaged if unreadable or not as written, UserError if of an unknown layout."""
    file = step_directory / store.METADATA / store.METADATA
    metadata = store.read_description(file)
    if metadata.get("checksum", found := _checksum(metadata)) != found:
        raise store.Damaged(f"{file}: damaged (its checksum differs)")
    return metadata


def _checksum(metadata: Mapping[str, Any]) -> int:
    """Of all of it but the checksum itself."""
    values = {key: value for key, value in metadata.items() if key != "checksum"}
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _read(
    directory: pathlib.Path, abstract: TrainState, config: RunConfig, vocabulary: JointVocabulary
) -> tuple[TrainState, dict[str, Any]]:
    """State in the stored dtypes, its bits not checked, and metadata."""
    metadata = _metadata(directory)
    _check_same_run(directory, metadata, config, vocabulary)
    arrays = {name: store.read_unchecked(directory / name, tree) for name, tree in _split(abstract).items()}
    return _join(abstract, arrays), metadata


def _checked(directory: pathlib.Path, state: TrainState, metadata: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
    """The same, unless a bit is not as it was written; all processes at once."""
    for name, tree in _split(state).items():
        store.check_bits(directory / name, tree, metadata["checksums"][name])
    return state, metadata


def _cast(state: TrainState, abstract: TrainState) -> TrainState:
    return jax.tree.map(lambda array, want: array.astype(want.dtype), state, abstract)


def _split(state: TrainState) -> dict[str, Any]:
    optimizer = {"step": state.step, "skipped": state.skipped, "opt_state": store.to_nested_dict(state.opt_state)}
    average = {store.AVERAGE: state.average} if state.average else {}
    return {store.PARAMS: state.params, store.OPTIMIZER: optimizer, **average}


def _join(like: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    optimizer = arrays[store.OPTIMIZER]
    opt_state = store.from_nested_dict(like.opt_state, optimizer["opt_state"])
    average = arrays.get(store.AVERAGE, {})
    return TrainState(optimizer["step"], arrays[store.PARAMS], opt_state, optimizer["skipped"], average)


def _check_same_run(
    directory: pathlib.Path, metadata: Mapping[str, Any], config: RunConfig, vocabulary: JointVocabulary
) -> None:
    if metadata["vocabulary_fingerprint"] != vocabulary.fingerprint():
        raise UserError(
            f"{directory}: made with vocabulary {metadata['vocabulary_fingerprint']}, the data has "
            f"{vocabulary.fingerprint()}: give another --run-dir"
        )
    stored = RunConfig.from_dict(metadata["config"])
    before, now = _fixed_keys(stored), _fixed_keys(config)
    differing = [key for key in before if before[key] != now[key]]
    if differing:
        key = differing[0]
        raise UserError(
            f"{directory}: made with {key} = {before[key]}, the config says {now[key]}: give another --run-dir"
        )
    if trained(stored, vocabulary) != trained(config, vocabulary):
        raise UserError(
            f"{directory}: other parameters were trained (train.trainable, loss.projection, loss.perceptual_weight): "
            "give another --run-dir"
        )


def _fixed_keys(config: RunConfig) -> dict[str, Any]:
    model = {f"model.{key}": value for key, value in vars(config.model).items() if key not in _FREE_KEYS}
    return {**model, "train.ema_decay": config.train.ema_decay}
