"""From a prepared data set to batches (Grain). Two ways in, one `Batch` out.

Offline: rows packed by `prepare`; a pure `MapDataset`: shuffle, repeat, mix, batch, slice by process. Batch s is a
function of (seed, s) alone, so the state is the step, a restart costs nothing, and any number of processes that divides
the batch sees the same global batches. Online: first-fit packing of records while reading, for small data; its state is
Grain's iterator state and belongs to one process count.
"""

from __future__ import annotations

import abc
import copy
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import absl.flags
import grain
import numpy as np

from aromni_jax.config import DataConfig, LossConfig
from aromni_jax.data.batch import Batch
from aromni_jax.data.files import Concatenated, RecordFile
from aromni_jax.data.manifest import Manifest, read_manifest
from aromni_jax.data.packing import MAX_SEGMENTS
from aromni_jax.data.prefetch import Prefetch
from aromni_jax.data.record import Record
from aromni_jax.data.rows import Row, pack
from aromni_jax.data.sources import Arrays, BadRecords, ExampleSource, RowSource
from aromni_jax.data.weights import weight_table
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

_ENDLESS = 2**48  # examples; Grain's own "for ever" (2**63 - 1) overflows when it is divided into batches
_BINS_PER_ROW = 4  # rows that online packing keeps open, per row of a batch


class Batches(abc.ABC, Iterator[Batch]):
    """Endless iterator over batches that can say where it is, and go there.

    Attributes:
      bad: records that were skipped (`on_bad_record="skip"`).
    """

    bad: BadRecords

    @abc.abstractmethod
    def get_state(self) -> dict[str, Any]:
        """JSON types; the position after the last batch that was yielded."""

    @abc.abstractmethod
    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `get_state` gave; UserError if another kind of pipeline gave it."""


def batches(
    config: DataConfig,
    loss: LossConfig,
    vocabulary: JointVocabulary,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    split: str = "train",
) -> Batches:
    """Shuffled batches without end, the first one that of `start_step`.

    Each process gets `batch_size / process_count` rows; the global batch is their concatenation in order of process.

    Args:
      loss: its response, prompt and segment weights become `Batch.loss_weights`.
      vocabulary: the model's; the data must have been made with the same.
      start_step: O(1) with offline packing; online, the batches before are made and dropped (use `set_state` there).

    Raises:
      UserError: no data set, another vocabulary, an unknown component, rows of another length, a batch that the
        processes do not divide; while iterating, a bad record if `on_bad_record` is "stop".
    """
    local = _local_rows(config, process_count)
    manifest = _open(config, vocabulary)
    files = _files(config, manifest, split, config.packing)
    bad = BadRecords(config.on_bad_record, sum(map(len, files.values())))
    to_batch = _BatchMaker(weight_table(loss), vocabulary.pad)
    _mark_flags_parsed()
    mine = slice(process_index, None, process_count)
    if config.packing == "offline":
        rows = {name: RowSource(file, vocabulary, config.sequence_length, bad) for name, file in files.items()}
        dataset = _mixed(config, rows).batch(local)[mine].map(to_batch)
        return _OfflineBatches(dataset, bad, config, start_step)
    examples = {name: ExampleSource(file, vocabulary, config.sequence_length, bad) for name, file in files.items()}
    packed = grain.experimental.FirstFitPackIterDataset(
        _mixed(config, examples)[mine].to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        length_struct=dict.fromkeys(("tokens", "roles", "task_ids"), config.sequence_length),
        num_packing_bins=_BINS_PER_ROW * local,
        seed=config.seed,
        max_sequences_per_bin=MAX_SEGMENTS,
    )
    stream = _OnlineBatches(packed.batch(local).map(to_batch), bad, config, process_count)
    for _ in range(start_step):
        next(stream)
    return stream


def epoch(
    config: DataConfig,
    loss: LossConfig,
    vocabulary: JointVocabulary,
    *,
    split: str = "test",
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every packed row of a split once, in order; the last batch is filled up with padding.

    `config.mixture` chooses components; its weights play no part. Where the stored rows have another length (possible
    with online packing), the records are packed afresh.

    Raises:
      UserError: as `batches`.
    """
    made = _epoch(config, loss, vocabulary, split, process_index, process_count)
    return Prefetch(made, config.prefetch, config.timeout_seconds)


def _epoch(
    config: DataConfig,
    loss: LossConfig,
    vocabulary: JointVocabulary,
    split: str,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    local = _local_rows(config, process_count)
    manifest = _open(config, vocabulary)
    source: Sequence[Arrays] | RowSource
    if manifest.sequence_length == config.sequence_length:
        files = Concatenated(list(_files(config, manifest, split, "offline").values()))
        source = RowSource(files, vocabulary, config.sequence_length, BadRecords(config.on_bad_record, len(files)))
    else:
        source = _packed_afresh(config, manifest, vocabulary, split)
    padding = vars(Row.empty(config.sequence_length, vocabulary))
    to_batch = _BatchMaker(weight_table(loss), vocabulary.pad)
    for first in range(0, len(source), config.batch_size):
        start = first + process_index * local
        rows = [source[i] if i < len(source) else padding for i in range(start, start + local)]
        yield to_batch({name: np.stack([row[name] for row in rows]) for name in padding})


def _packed_afresh(config: DataConfig, manifest: Manifest, vocabulary: JointVocabulary, split: str) -> Sequence[Arrays]:
    """Rows of `config.sequence_length` tokens from all good records of a split."""
    files = Concatenated(list(_files(config, manifest, split, "online").values()))
    examples = ExampleSource(files, vocabulary, config.sequence_length, BadRecords(config.on_bad_record, len(files)))
    good = [Record.from_bytes(files[i]) for i in range(len(files)) if examples[i] is not None]
    return [vars(row) for row in pack(good, config.sequence_length, vocabulary)]


def _local_rows(config: DataConfig, process_count: int) -> int:
    if config.batch_size % process_count:
        raise UserError(f"data.batch_size {config.batch_size} is no multiple of {process_count} processes")
    return config.batch_size // process_count


def _open(config: DataConfig, vocabulary: JointVocabulary) -> Manifest:
    manifest = read_manifest(config.path)
    manifest.check_vocabulary(vocabulary, config.path)
    if config.packing == "offline" and manifest.sequence_length != config.sequence_length:
        raise UserError(
            f"{config.path}: rows of {manifest.sequence_length} tokens, but data.sequence_length is "
            f"{config.sequence_length}; prepare the data with that length or set data.packing=online"
        )
    return manifest


def _files(config: DataConfig, manifest: Manifest, split: str, packing: str) -> dict[str, Concatenated]:
    """The files behind every name of the mixture; without a mixture, all examples under the name of the split."""
    parts = manifest.components(split, tuple(config.mixture))
    if packing == "online":
        names = {name: [part.records] for name, part in parts.items()}
        names = names if config.mixture else {split: [file for files in names.values() for file in files]}
    elif config.mixture:
        names = {name: [part.rows] for name, part in parts.items()}
    else:
        names = {split: [manifest.joint[split].rows]}
    folder = pathlib.Path(config.path)
    sources = {}
    for name, files in names.items():
        opened = Prefetch((RecordFile(folder / file) for file in files), 1, config.timeout_seconds)
        sources[name] = Concatenated(list(opened))
    for name, source in sources.items():
        if not len(source):
            raise UserError(f"{config.path}: {name} is empty")
    return sources


def _mixed(config: DataConfig, sources: Mapping[str, RowSource | ExampleSource]) -> grain.MapDataset:
    """Endless: each source shuffled anew every epoch, by its own seed, then mixed by weight."""
    parts = []
    for name, source in sources.items():
        seed = (config.seed + zlib.crc32(name.encode())) % 2**31
        parts.append(grain.MapDataset.source(source).shuffle(seed=seed).repeat(_ENDLESS // len(source)))
    if len(parts) == 1:
        return parts[0]
    return grain.MapDataset.mix(parts, [config.mixture[name] for name in sources])


class _BatchMaker:
    """Stacked rows [B, S] in their stored types -> `Batch`."""

    def __init__(self, weights: np.ndarray, pad: int) -> None:
        self._weights = weights
        self._pad = pad

    def __call__(self, rows: Arrays) -> Batch:
        # Online packing names the segments after the feature, and pads with 0.
        segment_ids_bs = rows["segment_ids" if "segment_ids" in rows else "tokens_segment_ids"].astype(np.int32)
        real_bs = segment_ids_bs > 0
        return Batch(
            tokens=np.where(real_bs, rows["tokens"], self._pad).astype(np.int32),
            loss_weights=self._weights[rows["task_ids"], rows["roles"]],
            segment_ids=segment_ids_bs,
            positions=_positions(segment_ids_bs),
            task_ids=rows["task_ids"].astype(np.int32),
        )


def _positions(segment_ids_bs: np.ndarray) -> np.ndarray:
    """0, 1, ... from the start of each segment; 0 on padding."""
    index_s = np.arange(segment_ids_bs.shape[1], dtype=np.int32)
    starts_bs = np.ones(segment_ids_bs.shape, bool)
    starts_bs[:, 1:] = segment_ids_bs[:, 1:] != segment_ids_bs[:, :-1]
    first_bs = np.maximum.accumulate(np.where(starts_bs, index_s, 0), axis=1)
    return np.where(segment_ids_bs > 0, index_s - first_bs, 0)


class _Stream(Batches):
    """Batches and the state after each, made ahead in one thread: rows are small, and a CPU run needs its cores."""

    def __init__(self, bad: BadRecords, config: DataConfig, state: dict[str, Any]) -> None:
        self.bad = bad
        self._config = config
        self._start(state)

    @abc.abstractmethod
    def _items(self, state: dict[str, Any]) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """From `state` on: each batch with the state after it."""

    def _start(self, state: dict[str, Any]) -> None:
        self._state = state
        self._ahead = Prefetch(self._items(state), self._config.prefetch, self._config.timeout_seconds)

    def __next__(self) -> Batch:
        batch, self._state = next(self._ahead)
        return batch

    def get_state(self) -> dict[str, Any]:
        return self._state


class _OfflineBatches(_Stream):
    def __init__(self, dataset: grain.MapDataset, bad: BadRecords, config: DataConfig, step: int) -> None:
        self._dataset = dataset
        super().__init__(bad, config, {"step": step})

    def _items(self, state: dict[str, Any]) -> Iterator[tuple[Batch, dict[str, Any]]]:
        return _indexed(self._dataset, state["step"])

    def set_state(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"step"}:
            raise UserError("the data state was saved by online packing; set data.packing=online to go on from it")
        self._ahead.stop()
        self._start(dict(state))


class _OnlineBatches(_Stream):
    def __init__(self, dataset: grain.IterDataset, bad: BadRecords, config: DataConfig, process_count: int) -> None:
        self._dataset = dataset
        self._process_count = process_count
        super().__init__(bad, config, {"grain": iter(dataset).get_state(), "processes": process_count})

    def _items(self, state: dict[str, Any]) -> Iterator[tuple[Batch, dict[str, Any]]]:
        return _iterated(self._dataset, state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        if "grain" not in state:
            raise UserError("the data state was saved by offline packing; set data.packing=offline to go on from it")
        if state["processes"] != self._process_count:
            raise UserError(
                f"the data state is that of {state['processes']} processes, this run has {self._process_count}: "
                "only offline packing can go on with another number"
            )
        self._ahead.stop()
        self._start(dict(state))


# Plain functions: a method would keep its stream, and so its thread, alive.
def _indexed(dataset: grain.MapDataset, step: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
    while True:
        batch = dataset[step]
        step += 1
        yield batch, {"step": step}


def _iterated(dataset: grain.IterDataset, state: dict[str, Any]) -> Iterator[tuple[Batch, dict[str, Any]]]:
    iterator = iter(dataset)
    iterator.set_state(state["grain"])
    for batch in iterator:
        yield batch, {**state, "grain": copy.deepcopy(iterator.get_state())}


def _mark_flags_parsed() -> None:
    """Grain 0.2.17 and 0.2.18 read an absl flag in their threads and fail outside `absl.app.run` (grain issue 1355)."""
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()
