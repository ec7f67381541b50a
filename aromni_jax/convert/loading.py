"""Models in and out of files: a self-contained model folder, or straight from the checkpoints of a run."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from aromni_jax import store
from aromni_jax.config import ModelConfig, RunConfig
from aromni_jax.errors import UserError
from aromni_jax.model import Params, abstract_params, check_params, forward, logits
from aromni_jax.vocabulary import JointVocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A decoder with its parameters.

    Attributes:
      config: shape and numerics.
      vocabulary: the joint vocabulary that its tokens belong to.
      params: nested dict of the parameter table.
      metadata: JSON; what was given to `save_model`, or step and run config of a checkpoint. Always has "world" and
        "template" (names, or None).
    """

    config: ModelConfig
    vocabulary: JointVocabulary
    params: Params
    metadata: Mapping[str, Any]

    def __call__(
        self,
        tokens_bs: jax.Array,
        positions_bs: jax.Array | None = None,
        segment_ids_bs: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """float32 logits [b, s, v] and final hidden states [b, s, d]; jitted, one compilation per shape."""
        return _apply(self.params, self.config, tokens_bs, positions_bs, segment_ids_bs)


@functools.partial(jax.jit, static_argnums=1)
def _apply(
    params: Params,
    config: ModelConfig,
    tokens_bs: jax.Array,
    positions_bs: jax.Array | None,
    segment_ids_bs: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    hidden_bsd, _ = forward(params, config, tokens_bs, positions_bs, segment_ids_bs)
    return logits(params, config, hidden_bsd), hidden_bsd


def save_model(
    path: str | os.PathLike[str],
    params: Params,
    config: ModelConfig,
    vocabulary: JointVocabulary,
    metadata: Mapping[str, Any] | None = None,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Write a model folder: `params/` (Orbax), `aromni.json`. It appears whole or not at all.

    Args:
      metadata: JSON types; "world" (codecs) and "template" tell `load_model`'s users how to talk to the model.
      dtype: of the stored arrays; loading brings them back to `config.param_dtype`.

    Raises:
      UserError: the folder exists, the parameters are not those of the config, or it cannot be written.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise UserError(f"{path}: exists already; give another name or remove it")
    check_params(params, config, "params")
    stored = jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), params)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        store.write_arrays(partial / store.PARAMS, stored)
        description = {
            "layout_version": store.LAYOUT_VERSION,
            "config": dataclasses.asdict(config),
            "vocabulary": vocabulary.to_dict(),
            "vocabulary_fingerprint": vocabulary.fingerprint(),
            "checksums": store.checksums(stored),
            "metadata": {"world": None, "template": None, **(metadata or {})},
        }
        store.write_json(partial / store.MODEL_FILE, description)
        os.rename(partial, path)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: the model could not be written ({store.failure_reason(error)})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_model(path: str | os.PathLike[str], vocabulary: JointVocabulary | None = None) -> Model:
    """Load a model folder, the newest complete checkpoint of a run folder, or one checkpoint (`run/checkpoints/100`).

    Every array's checksum is compared. The parameters land on the first device, in the config's dtype.

    Args:
      vocabulary: if given, the one that the model must have been made with.

    Raises:
      UserError: nothing there, not a checkpoint, damaged, of another vocabulary or of an unknown layout version.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if (path / store.MODEL_FILE).is_file():
        description = store.read_description(path / store.MODEL_FILE)
        config = _model_config(description["config"], path)
        checksums, metadata = description["checksums"], description["metadata"]
    else:
        path = _step_folder(path)
        description = store.read_description(path / store.METADATA / store.METADATA)
        run = RunConfig.from_dict(description["config"])
        config, checksums = run.model, description["checksums"][store.PARAMS]
        metadata = {
            "world": run.world,
            "template": run.template,
            "codecs": description.get("codecs", {}),
            "step": description["step"],
            "recipe": description["config"],
        }
    own = JointVocabulary.from_dict(description["vocabulary"])
    if own.fingerprint() != description["vocabulary_fingerprint"]:
        raise UserError(f"{path}: its vocabulary does not match its own fingerprint; the description was edited")
    if vocabulary is not None and vocabulary.fingerprint() != own.fingerprint():
        raise UserError(
            f"{path}: made with vocabulary {own.fingerprint()}, but {vocabulary.fingerprint()} is in use: take the "
            "codecs and prompts that belong to the model"
        )
    if own.size != config.vocab_size:
        raise UserError(f"{path}: the vocabulary has {own.size} ids, the model {config.vocab_size}")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract_params(config)
    )
    params = store.read_arrays(path / store.PARAMS, abstract, checksums)
    return Model(config, own, params, metadata)


def _step_folder(path: pathlib.Path) -> pathlib.Path:
    """The checkpoint that a path means: itself, or the newest complete one of a run."""
    if (path / store.METADATA).is_dir():
        return path
    run = path.parent if path.name == store.CHECKPOINTS else path
    steps = store.complete_steps(run)
    if not steps:
        raise UserError(f"{path}: neither a model folder ({store.MODEL_FILE}) nor a run or checkpoint that is complete")
    return run / store.CHECKPOINTS / str(steps[-1])


def _model_config(values: Mapping[str, Any], where: pathlib.Path) -> ModelConfig:
    try:
        return RunConfig.from_dict({"model": values}).model
    except UserError as error:
        raise UserError(f"{where / store.MODEL_FILE}: {error}") from None
