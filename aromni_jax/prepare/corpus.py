"""A source of any format as a data set: cut into parts, each made into a shard by an Apache Beam pipeline, then packed.

    .NAME.shards/request.json     what is asked for; shards of another request are thrown away
    .NAME.shards/plan.jsonl       a line per shard: which items it holds
    .NAME.shards/stopping         tells the workers to stop: there was a Ctrl-C
    .NAME.shards/000017/          a shard that is done: records by split and task, rejects, figures

A shard appears whole or not at all, and depends on its line of the plan alone. So the same command goes on after any
interruption, and the data set is the same bytes as if there had been none.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from aromni_jax.codecs import TextCodec
from aromni_jax.data.files import SUFFIX, RecordFile, RecordWriter
from aromni_jax.data.manifest import Manifest, write_manifest, write_split
from aromni_jax.data.record import Record
from aromni_jax.errors import UserError
from aromni_jax.prepare.beam import run_pipeline
from aromni_jax.prepare.building import already_built, building
from aromni_jax.prepare.examples import TASKS_MADE, ExampleBuilder, Recipe
from aromni_jax.prepare.items import SPLITS, Reject, Source
from aromni_jax.prepare.media import Codecs
from aromni_jax.prepare.tokenising import Tokeniser
from aromni_jax.store import read_json, write_json
from aromni_jax.tasks.templates import get_template
from aromni_jax.vocabulary import TASKS, JointVocabulary

REJECTS = "rejects.jsonl"
_RECIPE = 1  # raise it when the same request gives other records
_ITEMS_PER_SHARD = 512
_LOOK_SECONDS = 0.2  # between looks whether workers are to stop
_PLAN, _REQUEST, _FIGURES = "plan.jsonl", "request.json", "figures.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to make shards.

    Attributes:
      codecs: where they are; None for a source of token streams.
      stop: at the first reject.
    """

    source: Source
    recipe: Recipe
    vocabulary: JointVocabulary
    codecs: Mapping[str, str] | None
    folder: pathlib.Path
    stop: bool

    def tokeniser(self) -> Tokeniser:
        """Loads the codecs."""
        codecs = load_codecs(self.source, self.codecs)
        builder = ExampleBuilder(self.recipe, self.vocabulary, codecs.get("text"))
        return Tokeniser(builder, codecs.get("image"), codecs.get("speech"))

    def shard(self, number: int) -> pathlib.Path:
        """Folder of a shard that is done."""
        return self.folder / f"{number:06d}"

    @property
    def stopping(self) -> pathlib.Path:
        """A file that tells workers, wherever they are, to stop; all of them see this folder."""
        return self.folder / "stopping"


def prepare_corpus(
    source: Source,
    out_dir: str | os.PathLike[str],
    *,
    codecs: Mapping[str, str] | None = None,
    vocabulary: JointVocabulary | None = None,
    template: str | None = None,
    tasks: Sequence[str] = (),
    sequence_length: int = 4096,
    held_out_every: int = 100,
    seed: int = 0,
    on_bad_record: str = "skip",
    force: bool = False,
    progress: bool = True,
    items_per_shard: int = _ITEMS_PER_SHARD,
    beam_options: Sequence[str] = (),
) -> Manifest:
    """Make the data set, or find it made: one component per task, in the splits "train" and "test".

    Memory does not grow with the data: of each example four bytes are kept.

    Args:
      codecs: where they are: "text", "image", "speech"; None for a source of token streams.
      vocabulary: of a source of token streams; others have that of the codecs.
      template: of the prompts; None = "aromni" for the official layout, else "brief".
      tasks: those of `TASKS_MADE` to make; () = all that the items allow.
      sequence_length: tokens of a packed row, and of the longest example.
      held_out_every: one in so many items goes to the test split, chosen by its name, and the very first one; 0 = none.
        Not asked for where the source has a test split.
      on_bad_record: "skip" counts what cannot be used, and tells it in `rejects.jsonl`; "stop" ends at the first.
      items_per_shard: what a worker does at a time, and what an interruption costs.
      beam_options: of the pipeline, such as "--runner=FlinkRunner". Workers must see source, codecs and the folder
        of `out_dir` under the same paths.

    Raises:
      UserError: nothing in the source that can be used, something else in `out_dir`, a full disk, no Apache Beam.
      KeyboardInterrupt: Ctrl-C or SIGTERM came; the same call goes on with the shards that are done.
    """
    out_dir = pathlib.Path(out_dir)
    for task in tasks:
        if task not in TASKS_MADE:
            raise UserError(f"no task {task!r} is made of media; choose among {', '.join(TASKS_MADE)}")
    if sequence_length < 2 or held_out_every < 0:
        raise UserError(f"sequence length {sequence_length}, one held out of {held_out_every}: no such data set")
    if seed < 0:
        raise UserError(f"seed {seed}: give 0 or more")
    loaded = load_codecs(source, codecs)
    fingerprints = {kind: codec.fingerprint for kind, codec in loaded.items()}
    vocabulary = _vocabulary(source, loaded, vocabulary)
    template = template or ("aromni" if vocabulary == JointVocabulary.aromni() else "brief")
    every = 0 if source.has_split else held_out_every
    recipe = Recipe(get_template(template).name, tuple(tasks) or TASKS_MADE, sequence_length, every, seed)
    request = {
        "source": source.state(),
        "recipe": {"version": _RECIPE, **dataclasses.asdict(recipe)},
        "codecs": fingerprints,
        "codecs_at": codecs,
        "vocabulary": vocabulary.fingerprint(),
        "on_bad_record": on_bad_record,
        "items_per_shard": items_per_shard,
    }
    request = json.loads(json.dumps(request))  # as a manifest gives it back
    made = already_built(out_dir, request, force)
    work = out_dir.with_name(f".{out_dir.name}.shards")
    if made:
        shutil.rmtree(work, ignore_errors=True)
        return made
    job = Job(source, recipe, vocabulary, codecs, work, on_bad_record == "stop")
    counts = _plan(job, request, items_per_shard)
    run_pipeline(job, counts, beam_options, progress)
    with building(out_dir) as folder:
        manifest = _merged(folder, job, len(counts), request, fingerprints)
        write_manifest(folder, manifest)
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def load_codecs(source: Source, places: Mapping[str, str] | None) -> dict[str, Any]:
    """Those that the source needs, by kind; UserError if they are not named, or as they raise it."""
    if not source.needs:
        return {}
    if not places:
        raise UserError(
            "which codecs? Give --codecs a folder, the name of a world, or text=PATH image=PATH speech=PATH"
        )
    if source.sizes:
        if places["text"].endswith(".json"):
            raise UserError(
                "codes of AnyGPT's tokenizers cannot be mapped to the official layout, whose codes mean other pictures "
                "and sounds: encode its media anew, or give --codecs a text codec of another layout"
            )
        return {"text": TextCodec.load(places["text"])}
    codecs = Codecs.load(places)
    return {"text": codecs.text, "image": codecs.image, "speech": codecs.speech}


def _vocabulary(source: Source, codecs: Mapping[str, Any], given: JointVocabulary | None) -> JointVocabulary:
    """That of the codecs, with the sizes of codes that the source holds already; for token streams the given one."""
    if not source.needs:
        assert given is not None
        return given
    if source.sizes:
        return JointVocabulary.compact(text_pieces=codecs["text"].num_pieces, **source.sizes)
    return Codecs(**codecs).vocabulary


# -- the plan -------------------------------------------------------------------------------------------


def _plan(job: Job, request: dict[str, Any], size: int) -> list[int]:
    """Items of every shard; the plan of an earlier call is kept if it was asked the same."""
    kept = job.folder / _REQUEST
    try:
        if not (kept.is_file() and read_json(kept) == request):
            shutil.rmtree(job.folder, ignore_errors=True)
            job.folder.mkdir(parents=True)
            with (job.folder / _PLAN).open("w") as lines:
                for part, count in job.source.parts(size):
                    lines.write(json.dumps({"count": count, "part": part}) + "\n")
            write_json(kept, request)
        for left_over in job.folder.glob(".*"):
            shutil.rmtree(left_over, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot read or write {error.filename or job.folder}: {error.strerror or error}") from None
    with (job.folder / _PLAN).open() as lines:
        return [json.loads(line)["count"] for line in lines]


def part_at(job: Job, offset: int) -> Any:
    """The part whose line of the plan begins at that byte."""
    with (job.folder / _PLAN).open("rb") as lines:
        lines.seek(offset)
        return json.loads(lines.readline())["part"]


def plan_offsets(job: Job) -> Iterator[tuple[int, int]]:
    """(shard, byte where its line of the plan begins) of every shard that is not done."""
    offset = 0
    with (job.folder / _PLAN).open("rb") as lines:
        for number, line in enumerate(lines):
            if not job.shard(number).is_dir():
                yield number, offset
            offset += len(line)


# -- one shard ------------------------------------------------------------------------------------------


def make_shard(job: Job, tokeniser: Tokeniser, number: int, offset: int) -> None:
    """Make a shard, unless it is there.

    Raises:
      UserError: at the first reject if the job says so; writing fails; workers are to stop.
    """
    if job.shard(number).is_dir():
        return
    pictures, seconds, look_again = tokeniser.pictures, tokeniser.seconds, 0.0
    partial = job.folder / f".{number:06d}.{uuid.uuid4().hex[:8]}"
    try:
        partial.mkdir()
        with ExitStack() as stack:
            writers: dict[tuple[str, str], RecordWriter] = {}
            rejects = stack.enter_context((partial / REJECTS).open("w"))
            for made in tokeniser.examples(job.source.items(part_at(job, offset)), hold_first=number == 0):
                if time.monotonic() >= look_again:  # not for every example: the folder may be on a network
                    look_again = time.monotonic() + _LOOK_SECONDS
                    if job.stopping.exists():
                        raise UserError("the preparation was interrupted")
                if isinstance(made, Reject):
                    if job.stop:
                        raise UserError(made.line)
                    rejects.write(json.dumps(dataclasses.asdict(made)) + "\n")
                    continue
                split, record = made
                key = (split, record.task)
                if key not in writers:
                    writers[key] = stack.enter_context(RecordWriter(partial / f"{split}.{record.task}{SUFFIX}"))
                writers[key].write(record.to_bytes())
        figures = {"pictures": tokeniser.pictures - pictures, "seconds_of_speech": tokeniser.seconds - seconds}
        write_json(partial / _FIGURES, figures)
        try:
            partial.rename(job.shard(number))
        except OSError:  # a runner may give the same work to two workers
            if not job.shard(number).is_dir():
                raise
    except OSError as error:
        raise UserError(f"cannot read or write {error.filename or partial}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# -- all shards together --------------------------------------------------------------------------------


def _merged(
    folder: pathlib.Path, job: Job, shards: int, request: dict[str, Any], fingerprints: dict[str, str]
) -> Manifest:
    statistics = _merge_rejects(folder, job, shards)
    splits, joint = {}, {}
    for split in SPLITS:
        names = [task for task in TASKS if any(_shard_files(job, shards, split, task))]
        components = {task: _records(job, shards, split, task) for task in names}
        splits[split], joint[split] = write_split(
            folder,
            split,
            components,
            sequence_length=job.recipe.sequence_length,
            vocabulary=job.vocabulary,
            seed=job.recipe.seed,
        )
    if not splits["train"] and splits["test"]:
        raise UserError("no record to train on: all are held out; give --held-out-every a larger number, or more data")
    if not splits["train"]:
        with (folder / REJECTS).open() as lines:
            first = next((Reject(**json.loads(line)).line for line in lines), "the source is empty")
        raise UserError(f"no record to train on: {statistics['rejected']} rejected; the first one: {first}")
    return Manifest(
        vocabulary=job.vocabulary,
        codecs=fingerprints,
        sequence_length=job.recipe.sequence_length,
        request=request,
        splits=splits,
        joint=joint,
        statistics=statistics,
    )


def _shard_files(job: Job, shards: int, split: str, task: str) -> Iterator[pathlib.Path]:
    paths = (job.shard(number) / f"{split}.{task}{SUFFIX}" for number in range(shards))
    return (path for path in paths if path.is_file())


def _records(job: Job, shards: int, split: str, task: str) -> Iterator[Record]:
    for path in _shard_files(job, shards, split, task):
        file = RecordFile(path)
        for index in range(len(file)):
            yield Record.from_bytes(file[index], file.where(index))


def _merge_rejects(folder: pathlib.Path, job: Job, shards: int) -> dict[str, Any]:
    """Writes the rejects of all shards; statistics for the manifest."""
    reasons: collections.Counter[str] = collections.Counter()
    pictures, seconds = 0, 0.0
    with (folder / REJECTS).open("w") as out:
        for number in range(shards):
            figures = read_json(job.shard(number) / _FIGURES)
            pictures += figures["pictures"]
            seconds += figures["seconds_of_speech"]
            with (job.shard(number) / REJECTS).open() as lines:
                for line in lines:
                    out.write(line)
                    reasons[json.loads(line)["reason"]] += 1
    return {
        "pictures": pictures,
        "hours_of_speech": round(seconds / 3600, 4),
        "rejected": reasons.total(),
        "rejects": dict(sorted(reasons.items())),
    }
