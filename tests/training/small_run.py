"""A run small enough for tests: a synthetic data set with text, pictures and speech, and a config that fits it."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aromni_jax import data
from aromni_jax.config import DataConfig, LossConfig, MeshConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from aromni_jax.data import Batch, Manifest, Record
from aromni_jax.data.manifest import write_manifest, write_split
from aromni_jax.parallel import make_mesh
from aromni_jax.vocabulary import JointVocabulary

VOCABULARY = JointVocabulary.compact(text_pieces=24, image_codes=16, image_tokens=4, speech_codes=16)
WIDTH = 8
CODEBOOK = np.random.default_rng(9).normal(size=(16, WIDTH)).astype(np.float32)
ROW = 32


def records(count: int, seed: int) -> list[Record]:
    """Examples of four tasks, whose answer is a function of the prompt."""
    random, v = np.random.default_rng(seed), VOCABULARY
    made = []
    for index in range(count):
        digits = random.integers(0, 4, size=random.integers(1, 3))
        text = [int(v.text.start + d) for d in digits]
        image = [v.boi, *(int(v.image.start + (digits[0] + i) % 16) for i in range(v.image_tokens)), v.eoi]
        speech = [v.boa, *(int(v.speech.start + 3 * d + i) for d in digits for i in range(3)), v.eoa]
        task, prompt, answer = (
            ("image_caption", image, text),
            ("speech_to_text", speech, text),
            ("text_to_image", text, image),
            ("text_to_speech", text, speech),
        )[index % 4]
        tokens = np.asarray([v.bos, *prompt, v.eoh, *answer, v.eos], np.uint16)
        made.append(Record(tokens, task, len(answer), f"{task}/{index}"))
    return made


def write_data(folder: pathlib.Path) -> pathlib.Path:
    """The prepared data set under `folder`."""
    splits, joint = {}, {}
    for split, count, seed in (("train", 96, 0), ("test", 16, 1)):
        splits[split], joint[split] = write_split(
            folder, split, {"all": records(count, seed)}, sequence_length=ROW, vocabulary=VOCABULARY
        )
    made = Manifest(vocabulary=VOCABULARY, codecs={}, sequence_length=ROW, request={}, splits=splits, joint=joint)
    write_manifest(folder, made)
    return folder


def config(path: pathlib.Path, **changes: Any) -> RunConfig:
    """A run on `write_data(path)`; `changes` are "group__key" = value."""
    run = RunConfig(
        model=ModelConfig(
            vocab_size=VOCABULARY.size, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=64,
            norm_order="swin", perceptual_dim=WIDTH,
        ),
        data=DataConfig(path=str(path), sequence_length=ROW, batch_size=8),
        loss=LossConfig(perceptual_weight=0.5),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=2, weight_decay=0.1),
        mesh=MeshConfig(),
        train=TrainConfig(steps=6, log_every=2, eval_every=100, checkpoint_every=100),
    )  # fmt: skip
    return changed(run, **changes)


def changed(run: RunConfig, **changes: Any) -> RunConfig:
    """The same run with other values: `changed(run, train__steps=3)`."""
    for name, value in changes.items():
        group, key = name.split("__")
        run = dataclasses.replace(run, **{group: dataclasses.replace(getattr(run, group), **{key: value})})
    return run


def batch(run: RunConfig, step: int = 0) -> Batch:
    """The batch of one step, on the host."""
    return next(data.batches(run.data, run.loss, VOCABULARY, start_step=step))


def one_device() -> jax.sharding.Mesh:
    """A mesh of one device, however many there are."""
    return make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])


def placed(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """A copy of the tree on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
