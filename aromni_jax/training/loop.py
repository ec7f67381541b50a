"""The training loop: one function, its phases in order."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

import aromni_jax
from aromni_jax import data, store
from aromni_jax.config import RunConfig
from aromni_jax.convert import open_source, read_params
from aromni_jax.errors import UserError
from aromni_jax.model import Params, flatten, nest, trained
from aromni_jax.parallel import (
    batch_sharding,
    check_shared,
    make_mesh,
    own_rows,
    same_everywhere,
    together,
)
from aromni_jax.signals import NotedSignals
from aromni_jax.training.boards import open_boards
from aromni_jax.training.checkpoints import Checkpoints
from aromni_jax.training.history import note_end, note_start
from aromni_jax.training.metrics import Metrics, MetricsLog, summary
from aromni_jax.training.monitor import Monitor
from aromni_jax.training.optimizer import make_optimizer
from aromni_jax.training.profile import Profile
from aromni_jax.training.program import abstract_state, lower_step
from aromni_jax.training.progress import Clock, Progress, Say, losses, start_report
from aromni_jax.training.sampling import Sampler, take_samples
from aromni_jax.training.state import TrainState, beginning_with, make_state
from aromni_jax.training.step import EvalStep, make_eval_step
from aromni_jax.vocabulary import JointVocabulary


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      state: the last state.
      stopped_by: name of the signal that ended the run early, or None.
      held_out: metrics of the last evaluation (`metrics.summary`); empty if there was none.
    """

    state: TrainState
    stopped_by: str | None
    held_out: dict[str, float]


def train(
    config: RunConfig,
    run_directory: pathlib.Path,
    *,
    codebook_kc: np.ndarray | None = None,
    sampler: Sampler | None = None,
    profile: tuple[int, int] | None = None,
    say: Say | None = None,
) -> Result:
    """Train until `config.train.steps`, from the newest checkpoint of the run folder if it has one.

    Resuming is bit-equal to an uninterrupted run on the same devices; on another mesh it is equal up to rounding.
    SIGTERM and Ctrl-C save a checkpoint and end the run.

    Args:
      run_directory: gets `config.json`, `history.jsonl`, `metrics.jsonl`, `tensorboard/` and `checkpoints/`.
      codebook_kc: float [codes, width], the image codec's codebook, for the perceptual loss.
      sampler: asked for samples every `train.sample_every` steps and at the end; None = no samples.
      profile: first and last step to trace into `profile/`.
      say: takes each line of output; default: a progress bar in a terminal, printed lines elsewhere.

    Raises:
      UserError: data, config and checkpoints do not fit together; a checkpoint cannot be written; too many steps with
        a loss or gradient that is not finite.
    """
    clock = Clock()
    # Mesh and data --------------------------------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    replicated, rows = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    first_process = jax.process_index() == 0
    with together("config and data"):
        manifest = data.read_manifest(config.data.path)
        vocabulary = manifest.vocabulary
        _check(config, vocabulary, mesh, codebook_kc)
        parts = trained(config, vocabulary)
        index, count = own_rows(rows)
        batches = data.batches(config.data, config.loss, vocabulary, process_index=index, process_count=count)
    same_everywhere("run", _identity(config, manifest))
    codebook = None
    if config.loss.perceptual_weight and codebook_kc is not None:
        codebook = jax.make_array_from_callback(codebook_kc.shape, replicated, lambda index: codebook_kc[index])

    # State: described, then restored or made --------------------------------------------------------------
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    abstract = abstract_state(config, vocabulary, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    run_directory.mkdir(parents=True, exist_ok=True)
    check_shared(run_directory)
    checkpoints = Checkpoints(run_directory, config.train.keep_checkpoints)
    restored = checkpoints.restore(abstract, config, vocabulary, say or print)
    if restored is None:
        make = jax.jit(lambda key: make_state(config, vocabulary, optimizer, key), out_shardings=shardings)
        state = make(jax.random.key(config.train.seed))
        if config.train.init_from:
            state = beginning_with(state, _weights(config, vocabulary, state.params, say or print))
    else:
        state, saved = restored
        if saved.get("codecs", manifest.codecs) != manifest.codecs:
            raise UserError(
                f"{run_directory}: trained with other codecs than {config.data.path} was made with: prepare the data "
                "with the run's codecs, or give another --run-dir"
            )
        batches.set_state(saved["data"])
    first = int(state.step)
    if first > config.train.steps:
        raise UserError(
            f"{run_directory}: is at step {first}, further than train.steps {config.train.steps}: ask for more steps, "
            "or give another --run-dir"
        )

    with together("boards"):
        boards = open_boards(config, run_directory, first) if first_process else []

    # Steps: compiled once, before the first one -----------------------------------------------------------
    preparing = clock.wall()
    with jax.set_mesh(mesh), clock.phase("compile"):
        step_program = lower_step(config, vocabulary, optimizer, abstract, mesh, codebook).compile()
        eval_step = jax.jit(make_eval_step(config, vocabulary), out_shardings=replicated)
    if first_process:
        store.write_json(run_directory / "config.json", config.to_dict())
    progress = Progress(config.train.steps, first, say)
    memory = step_program.memory_analysis()
    progress.line(start_report(config, parts, abstract, mesh, getattr(memory, "temp_size_in_bytes", None)))
    progress.line(f"compiled the step in {clock.spent('compile'):.1f} s")
    if first:
        progress.line(f"resumed {run_directory} at step {first} of {config.train.steps}")

    # The loop: step n + 1 is dispatched before the metrics of step n are fetched -----------------------------
    log = MetricsLog(run_directory, first, boards)
    if first < config.train.steps:
        spent = {"prepare": preparing, "compile": clock.spent("compile")}
        note_start(run_directory, config, vocabulary, mesh, first, log.dropped, spent)
    monitor = Monitor(config, parts, log, progress, list(mesh.devices.flat), int(state.skipped))
    held_out: dict[str, float] = {}
    sampled = False
    pending: tuple[int, Metrics] | None = None
    tracing = Profile(run_directory, profile, range(first + 1, config.train.steps + 1), progress, monitor.clock)
    close = contextlib.closing  # whatever ends the loop, a save in the background is brought to its end
    with _StopSignals() as stop, close(checkpoints), close(log), close(progress), close(tracing), jax.set_mesh(mesh):
        for done in range(first + 1, config.train.steps + 1):
            tracing.before(done, state)
            with monitor.clock.waiting():
                batch = _to_devices(config, next(batches), rows)
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                state, metrics = step_program(state, batch, codebook)
            tracing.after(done, state)
            checkpoints.poll()
            if pending is not None:
                monitor.observe(*pending)
            pending = (done, metrics)
            last = done == config.train.steps
            stopping = stop.requested(done) and not last  # a signal in the last step changes nothing: that is the end
            evaluating = last or (not stopping and done % config.train.eval_every == 0)
            sampling = sampler is not None and bool(every := config.train.sample_every) and (last or done % every == 0)
            # Before the first samples, too: they are compiled for, and a signal may not leave the time for that.
            first_samples = sampling and not (sampled or stopping)
            saving = stopping or last or first_samples or done % config.train.checkpoint_every == 0
            if evaluating or saving or sampling:
                monitor.observe(*pending)
                pending = None
            if evaluating:
                with monitor.clock.phase("eval"):
                    held_out = _evaluate(config, vocabulary, rows, eval_step, state, codebook)
                log.write(done, "eval", held_out)
                progress.line(f"step {done}: held-out {losses(held_out)}")
            if saving:
                with monitor.clock.phase("checkpoint"):
                    checkpoints.save(state, config, vocabulary, batches.get_state(), manifest.codecs)
            if stopping:
                break
            if sampling and sampler is not None:
                with monitor.clock.phase("samples" if sampled else "first_samples"):  # the first ones are compiled for
                    take_samples(sampler, state.weights, done, log, progress)
                sampled = True
        monitor.write(int(state.step))
    stopped_by = stop.name if int(state.step) < config.train.steps else None
    if first < int(state.step):
        note_end(run_directory, int(state.step), stopped_by, monitor.clock.phases)
    if stopped_by is not None:
        (say or print)(f"stopped by {stopped_by}, saved step {int(state.step)}: the same command goes on from there")
    return Result(state, stopped_by, held_out)


def _check(
    config: RunConfig, vocabulary: JointVocabulary, mesh: jax.sharding.Mesh, codebook_kc: np.ndarray | None
) -> None:
    """What no single part of the config can see."""
    if config.model.vocab_size != vocabulary.size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size}, but the vocabulary of {config.data.path} has "
            f"{vocabulary.size} ids"
        )
    if config.data.sequence_length > config.model.max_positions:
        raise UserError(
            f"data.sequence_length {config.data.sequence_length} is more than model.max_positions "
            f"{config.model.max_positions}"
        )
    if config.data.sequence_length % mesh.shape["context"]:
        raise UserError(
            f"data.sequence_length {config.data.sequence_length} is no multiple of mesh.context {mesh.shape['context']}"
        )
    parts = config.train.accumulate_steps * mesh.shape["replica"] * mesh.shape["fsdp"]
    if config.data.batch_size % parts:
        raise UserError(
            f"data.batch_size {config.data.batch_size} is no multiple of {parts}, which is train.accumulate_steps x "
            "mesh.replica x mesh.fsdp"
        )
    if config.loss.perceptual_weight:
        width = config.model.perceptual_dim
        expected = (len(vocabulary.image), width)
        if width == 0 or codebook_kc is None or codebook_kc.shape != expected:
            found = "there is none" if codebook_kc is None else f"that of the codec is {codebook_kc.shape}"
            raise UserError(
                f"loss.perceptual_weight needs an image codebook of shape {expected} (codes, model.perceptual_dim): "
                f"{found}; set loss.perceptual_weight=0 or model.perceptual_dim"
            )


def _identity(config: RunConfig, manifest: data.Manifest) -> dict[str, Any]:
    """What all processes of a run must have in common; paths may differ, what lies there may not."""
    values = {name.replace("/", "."): value for name, value in store.leaf_names(config.to_dict()).items()}
    del values["data.path"]
    data_set = hashlib.sha256(manifest.to_json().encode()).hexdigest()[:16]
    return {**values, "the data set": data_set, "jax": jax.__version__, "aromni_jax": aromni_jax.__version__}


def _to_devices(config: RunConfig, batch: data.Batch, rows: NamedSharding) -> data.Batch:
    """This process's rows -> global arrays."""
    shape = (config.data.batch_size, config.data.sequence_length)
    return jax.tree.map(lambda local_bs: jax.make_array_from_process_local_data(rows, local_bs, shape), batch)


def _evaluate(
    config: RunConfig,
    vocabulary: JointVocabulary,
    rows: NamedSharding,
    eval_step: EvalStep,
    state: TrainState,
    codebook: jax.Array | None,
) -> dict[str, float]:
    """Metrics over the answers of the whole held-out split.

    Prompts do not count: what a user asks cannot be predicted, and held-out numbers least of all.
    """
    total: Metrics | None = None
    answers = dataclasses.replace(config.loss, prompt_weight=0.0)
    index, count = own_rows(rows)
    held_out = data.epoch(config.data, answers, vocabulary, process_index=index, process_count=count)
    for batch in held_out:
        metrics = eval_step(state.weights, _to_devices(config, batch, rows), codebook)
        total = metrics if total is None else total + metrics
    return summary(jax.device_get(total), config.loss.perceptual_weight)


def _weights(config: RunConfig, vocabulary: JointVocabulary, params: Params, say: Say) -> Params:
    """The weights of `train.init_from` in the place and dtype of `params`, which keep what the model there lacks."""
    with open_source(config.train.init_from, vocabulary) as source:
        loaded = read_params(source, config.model, params)
        for line in source.warnings:
            say(f"note: {line}")
    fresh = sorted(store.leaf_names(params).keys() - store.leaf_names(loaded).keys())
    say(f"weights of {source.path} ({source.layout})" + (f"; not there: {', '.join(fresh)}" if fresh else ""))
    if source.config.norm_order != config.model.norm_order:
        say(f"note: norms were {source.config.norm_order} there, are {config.model.norm_order} here")
    return nest({**flatten(params), **flatten(loaded)})


class _StopSignals(NotedSignals):
    """With several processes JAX's own preemption notice is asked instead, so that all stop at the same step."""

    def __enter__(self) -> _StopSignals:
        if jax.process_count() == 1:
            super().__enter__()
        return self

    def requested(self, step: int) -> bool:
        """Whether the run should end after this step; every process must ask at every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.name = "preemption"
        return self.name is not None
