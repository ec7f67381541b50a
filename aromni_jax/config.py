"""Run configuration: frozen dataclasses, and the bridge from `ml_collections` files.

One definition of every key. A config file is Python with `get_config(arg)`; it is frozen here at once, and a key
that no dataclass knows is an error with the nearest known name.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import math
import pathlib
import traceback
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import ml_collections

from aromni_jax.errors import UserError
from aromni_jax.vocabulary import task_id

_T = TypeVar("_T")
Remat = Literal["none", "dots", "qkv", "full", "offload"]


def _require_positive(config: Any, group: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{group}.{name}", f"is {value}; it must be positive")


def _require(good: bool, where: str, problem: str) -> None:
    if not good:
        raise UserError(f"config key {where}: {problem}")


Matrix = Literal["query", "key", "value", "out", "gate", "up", "down"]  # of a layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters of the layers' matrices: x W becomes x W + alpha / rank * (x A) B, with W left as it is.

    Whatever reads a run (`load_model`, `aromni convert`, ...) gets W + alpha / rank * A B.

    Attributes:
      rank: columns of A and rows of B; 0 = no adapters.
      matrices: those that have adapters, in every layer.
    """

    rank: int = 0
    alpha: float = 16.0
    matrices: tuple[Matrix, ...] = typing.get_args(Matrix)

    def __post_init__(self) -> None:
        _require(self.rank >= 0, "model.lora.rank", f"is {self.rank}; it must not be negative")
        _require(len(self.matrices) > 0, "model.lora.matrices", "is empty; for no adapters set model.lora.rank=0")

    @property
    def scale(self) -> float:
        """Of what the adapters add."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and numerics of the decoder (SPEC 3.1, 3.2).

    Attributes:
      norm_order: "pre": x + f(norm(x)); "swin": x + norm(f(x)).
      qk_norm_eps: eps of the LayerNorm on queries and keys; 1e-5 whatever norm_eps says.
      qk_norm_groups: groups of heads that share the vectors of that LayerNorm: 1 in the 7B release, 4 in the 34B one
        (SPEC 3.4), where weights that are trained on have to stay such; 0 = every head has its own.
      compute_dtype, param_dtype: "float32" or "bfloat16"; norms, softmax, RoPE and logits are float32 always.
      attention: of whole rows: "xla" (score matrices, anywhere), "blocked" (for CPUs), "fused" (splash attention on a
        TPU, cuDNN on a GPU, "xla" elsewhere and for shapes that those do not take).
      remat: what the backward pass recomputes: "none"; "dots": all but matrix products; "qkv": all but the
        products that make queries, keys and values; "full": all of a layer, from its input; "offload": the same, from
        an input that waits in the host's memory.
      scan_layers: one compiled layer looped over, or every layer unrolled (longer to compile, faster on a CPU).
      perceptual_dim: width of the image codebook that the perceptual projection maps to; 0 = no projection.
      logits_tile: columns of the vocabulary per tile of the cross entropy; 0 = one tile.
      lora: adapters, which a run trains in place of the model (`TrainConfig.trainable`).
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    norm_order: Literal["pre", "swin"] = "pre"
    norm_eps: float = 1e-5
    qk_norm_eps: float = 1e-5
    qk_norm_groups: int = 0
    rope_theta: float = 10_000.0
    max_positions: int = 4096
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    attention: str = "xla"
    remat: Remat = "none"
    scan_layers: bool = True
    perceptual_dim: int = 0
    logits_tile: int = 0
    lora: LoraConfig = LoraConfig()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "max_positions")
        _require_positive(self, "model", *sizes, "norm_eps", "qk_norm_eps", "rope_theta")
        _require(min(self.perceptual_dim, self.logits_tile) >= 0, "model", "perceptual_dim, logits_tile: not negative")
        _require(self.heads % self.kv_heads == 0, "model.heads", f"must be a multiple of kv_heads {self.kv_heads}")
        groups = self.qk_norm_groups
        shared = groups == 0 or (groups > 0 and self.kv_heads % groups == 0)
        _require(
            shared, "model.qk_norm_groups", f"is {groups}; use 0, or a number that divides kv_heads {self.kv_heads}"
        )
        _require(self.head_dim % 2 == 0, "model.head_dim", "must be even (RoPE turns pairs)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weighted next-token loss and the perceptual loss (paper eq. 2 and 3, SPEC 4).

    Attributes:
      response_weights: task -> weight of the answer's tokens (SPEC 4.1); tasks not named weigh 1.
      prompt_weight: weight of every token before the answer; 1 = whole sequence (stage 1), 0 = responses only (tuning).
      segment_weight: weight of targets between ins and res (SPEC 4.2); 1 = off.
      normalise: divide by the weights of the "global" batch, of the "micro_batch" (reference) or by "tokens" (paper).
      z_loss: weight of log(Z)^2; 0 = off.
      perceptual_weight: factor of the perceptual term; 0 = off.
      perceptual_tasks: tasks whose image tokens take part; empty = every task.
      align: "predict": the state that predicts the code (paper); "same_position": the one that read it (released code).
      reduce: over the codebook's width: "sum" (paper) or "mean" (released code).
      projection: "trained" (paper) or "frozen" (released code).
    """

    response_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"image_caption": 2.0, "speech_to_text": 2.0}
    )
    prompt_weight: float = 1.0
    segment_weight: float = 1.0
    normalise: Literal["global", "micro_batch", "tokens"] = "global"
    z_loss: float = 0.0
    perceptual_weight: float = 1.0
    perceptual_tasks: tuple[str, ...] = ("text_to_image",)
    align: Literal["predict", "same_position"] = "predict"
    reduce: Literal["sum", "mean"] = "mean"
    projection: Literal["trained", "frozen"] = "trained"

    def __post_init__(self) -> None:
        for name in (*self.response_weights, *self.perceptual_tasks):
            task_id(name)
        object.__setattr__(self, "response_weights", dict(self.response_weights))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where batches come from (DESIGN 6).

    Attributes:
      path: folder of a prepared data set (rows, records, manifest.json).
      sequence_length: tokens per packed row.
      batch_size: rows per optimiser step over all hosts (all accumulation steps included).
      mixture: component -> weight; empty = the whole of `path` as one component.
      packing: "offline": best-fit rows written by `prepare`; "online": first-fit while reading.
      on_bad_record: "stop" at the first bad record, or "skip" and count.
      prefetch: batches made ahead.
      timeout_seconds: a run whose next batch has not come after so long ends, and names what was being read.
    """

    path: str = ""
    sequence_length: int = 256
    batch_size: int = 8
    seed: int = 0
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    packing: Literal["offline", "online"] = "offline"
    on_bad_record: Literal["stop", "skip"] = "stop"
    prefetch: int = 2
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        _require_positive(self, "data", "sequence_length", "batch_size", "prefetch", "timeout_seconds")
        object.__setattr__(self, "mixture", dict(self.mixture))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule (SPEC 5)."""

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    peak_lr: float = 1e-3
    warmup_steps: int = 100
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    end_lr_ratio: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Size of each mesh axis; one of them may be -1 = all remaining devices."""

    replica: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and rhythm of a run, in optimiser steps.

    Attributes:
      init_from: model of any format whose weights a new run begins with; "" = random ones.
      trainable: what is trained, by patterns of the parameter table's names: "layers/attention/*", "head/kernel"; with
        "@image" (or text, speech) behind it, of a table over ids only what belongs to these. Nothing named = the
        adapters if the model has any, else everything. The perceptual projection is `loss.projection`'s matter.
      ema_decay: of the moving average of what is trained, warmed up as min(ema_decay, (1 + n) / (10 + n)) at update n.
        Evaluation and whatever reads the run take the average then; 0 = none is kept.
      max_skipped_steps: the run stops after so many non-finite steps in total.
      keep_checkpoints: newest checkpoints kept.
      sample_every: how often the model answers fixed held-out prompts, into TensorBoard and `samples/`; 0 = never.
      wandb: project of Weights & Biases that gets the metrics and samples, too; "" = none.
    """

    steps: int = 1000
    seed: int = 0
    init_from: str = ""
    trainable: tuple[str, ...] = ()
    ema_decay: float = 0.0
    accumulate_steps: int = 1
    log_every: int = 20
    eval_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    max_skipped_steps: int = 20
    sample_every: int = 0
    wandb: str = ""

    def __post_init__(self) -> None:
        rhythm = ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints")
        _require_positive(self, "train", "steps", "accumulate_steps", *rhythm)
        _require(0 <= self.ema_decay < 1, "train.ema_decay", f"is {self.ema_decay}; use 0 (none) or less than 1")
        _require(self.sample_every >= 0, "train.sample_every", f"is {self.sample_every}; use 0 for never")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a run; stored in every checkpoint.

    Attributes:
      world: name of the small world whose codecs tokenise and play media.
      template: name of the prompt template (`tasks.templates`).
    """

    model: ModelConfig
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    world: str = "numbers"
    template: str = "brief"

    @classmethod
    def from_config_dict(cls, config: ml_collections.ConfigDict) -> RunConfig:
        """Freeze an `ml_collections` config; UserError on an unknown key or a wrong type."""
        return cls.from_dict(config.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Inverse of `to_dict`; UserError on an unknown key or a wrong type."""
        return _build(cls, values, "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def load_config(spec: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `FILE.py` or `FILE.py:ARG` and apply `key.path=value` overrides (values are JSON, or plain strings).

    Raises:
      UserError: no such file, no `get_config`, unknown variant, unknown key, wrong type.
    """
    path, _, arg = spec.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"config {path}: no such file")
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config {path}: is no Python file (*.py) with get_config(arg)")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"config {path}: has no get_config(arg)")
        config = module.get_config(arg)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"config {path}, line {error.lineno}: {error.msg}") from None
    except Exception as error:  # whatever the file does; ml_collections answers a misspelt key with an AttributeError
        raise UserError(f"config {path}, {_line_in(file, error)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, (ml_collections.ConfigDict, Mapping)):
        raise UserError(f"config {path}: get_config returned {type(config).__name__}; expected a ConfigDict or a dict")
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    for override in overrides:
        _override(values, override)
    return RunConfig.from_dict(values)


def _line_in(file: pathlib.Path, error: Exception) -> str:
    """The last line of `file` that the error passed through."""
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if pathlib.Path(at.filename) == file]
    return f"line {lines[-1]}" if lines else "when imported"


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r}: write it as key.path=value")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {parent} is a value, not a group")
    node[last] = value


def _build(cls: type[_T], values: Any, where: str) -> _T:
    if not isinstance(values, Mapping):
        raise UserError(f"config key {where.rstrip('.') or 'root'}: expected a group of keys, got {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            advice = f"did you mean {where}{near[0]}?" if near else f"known keys: {', '.join(hints)}"
            raise UserError(f"unknown config key {where}{key}: {advice}")
    try:
        return cls(**{key: _convert(hints[key], value, where + key) for key, value in values.items()})
    except TypeError as error:
        raise UserError(f"config {where.rstrip('.') or 'root'}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, or a UserError that says what was expected."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        _require(value in args, where, f"is {value!r}; use one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), where, f"is {value!r}; expected a list")
        return tuple(_convert(args[0], item, where) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(value, Mapping), where, f"is {value!r}; expected a table name -> number")
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        _require(math.isfinite(value), where, f"is {value!r}; expected a finite number")
        return float(value)
    expected = hint.__name__ if isinstance(hint, type) else str(hint)
    wrong_bool = isinstance(value, bool) and hint is not bool
    _require(isinstance(value, hint) and not wrong_bool, where, f"is {value!r}; expected {expected}")
    return value
