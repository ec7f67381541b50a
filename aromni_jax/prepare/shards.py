"""The reference's own token shards (SPEC 2.1) as a data set: checked, split by task, packed."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

from aromni_jax.data.files import read_reference_shards, shard_files
from aromni_jax.data.manifest import Manifest, write_manifest, write_split
from aromni_jax.data.record import Record
from aromni_jax.errors import UserError
from aromni_jax.prepare.building import already_built, building
from aromni_jax.vocabulary import JointVocabulary

_REASONS_KEPT = 20


def prepare_shards(
    source: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    vocabulary: JointVocabulary,
    sequence_length: int = 4096,
    held_out_every: int = 100,
    on_bad_record: str = "stop",
    seed: int = 0,
    force: bool = False,
) -> Manifest:
    """Make the data set, or find it made: one component per task that occurs, in the splits "train" and "test".

    All records are in memory at once (2 bytes per token and some hundred per record).

    Args:
      source: a *.jsonl file, or a folder of them.
      held_out_every: every so many-th record of each task goes to "test"; the first one is the last of the first lot.
      on_bad_record: "stop" at the first bad line, or "skip"; what was skipped is told in the manifest's statistics.

    Raises:
      UserError: no shards, a bad line (file:line), no good line, something else in `out_dir`, a full disk.
    """
    out_dir = pathlib.Path(out_dir)
    request = {
        "shards": {str(file): file.stat().st_size for file in shard_files(source)},
        "sequence_length": sequence_length,
        "held_out_every": held_out_every,
        "on_bad_record": on_bad_record,
        "seed": seed,
        "vocabulary": vocabulary.fingerprint(),
    }
    made = already_built(out_dir, request, force)
    if made:
        return made
    skipped: list[str] = []
    records: dict[str, list[Record]] = {}
    for record in _good(source, vocabulary, on_bad_record, skipped):
        records.setdefault(record.task, []).append(record)
    if not records:
        raise UserError(f"{source}: no record to keep ({len(skipped)} bad)")
    with building(out_dir) as folder:
        splits, joint = {}, {}
        for split in ("train", "test"):
            chosen = {task: _part(of_task, held_out_every, split) for task, of_task in records.items()}
            splits[split], joint[split] = write_split(
                folder, split, chosen, sequence_length=sequence_length, vocabulary=vocabulary, seed=seed
            )
        manifest = Manifest(
            vocabulary=vocabulary,
            codecs={},
            sequence_length=sequence_length,
            request=request,
            splits=splits,
            joint=joint,
            statistics={"bad_records": len(skipped), "first_bad_records": skipped[:_REASONS_KEPT]},
        )
        write_manifest(folder, manifest)
    return manifest


def _good(
    source: str | os.PathLike[str], vocabulary: JointVocabulary, on_bad_record: str, skipped: list[str]
) -> Iterator[Record]:
    for item in read_reference_shards(source, vocabulary):
        if isinstance(item, Record):
            yield item
        elif on_bad_record == "stop":
            raise item
        else:
            skipped.append(str(item))


def _part(records: list[Record], every: int, split: str) -> list[Record]:
    """Every so many-th record is held out."""
    return [record for i, record in enumerate(records) if (i % every == every - 1) == (split == "test")]
