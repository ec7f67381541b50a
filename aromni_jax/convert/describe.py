"""What a checkpoint is, for people; and whether its norm order is the right one (SPEC 3.7)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax.codecs import TextCodec, TokenizerJson
from aromni_jax.config import ModelConfig
from aromni_jax.convert import assets as files
from aromni_jax.convert.layouts import pieces
from aromni_jax.convert.loading import Model
from aromni_jax.convert.source import Source
from aromni_jax.errors import UserError
from aromni_jax.model import Params, forward, logits, parameter_counts, parameter_table
from aromni_jax.vocabulary import OFFICIAL_SIZE

_LAYOUTS = {
    "aromni": "a model folder of this project",
    "run": "a checkpoint of a training run",
    "hf": "Hugging Face, upstream: q and k rows permuted, QK-norm vectors [heads, head_dim]",
    "hf-reference": "Hugging Face, as AR-Omni and Anole have it: q and k unpermuted, one QK-norm vector [head_dim]",
    "meta": "Meta: consolidated.pth, as AR-Omni's inference reads it",
}
_RMS_BYTES = 2**30  # of a model whose arrays are worth reading for a look at it
_ROW = 1024  # tokens per row of the check by text
_ENOUGH = 64  # tokens of a text that a norm order is judged by
NormOrder = Literal["pre", "swin"]
_ORDERS: tuple[NormOrder, ...] = ("pre", "swin")


def describe(source: Source) -> list[str]:
    """Lines: layout, sizes, dtype, norm order, vocabulary check, parameter table.

    Raises:
      UserError: the source is damaged.
    """
    config, vocabulary, size = source.config, source.vocabulary, source.bytes()
    counts = parameter_counts(config)
    total = counts.pop("total")
    kinds = collections.Counter(dtype.name for _, dtype in source.planned())
    stored = ", ".join(f"{name} ({count} tensors)" for name, count in kinds.items())
    lines = [
        f"model {source.path}",
        f"  layout: {source.layout} ({_LAYOUTS[source.layout]})",
        f"  stored: {stored}, {size / 1e9:,.2f} GB",
        f"  norm order: {config.norm_order}",
        *(
            f"  {name}: {json.dumps(value)}"
            for name, value in vars(config).items()
            if name not in ("norm_order", "lora")
        ),
        f"parameters {total:,}",
        *(f"  {group:<12} {count:>14,} {count / total:6.1%}" for group, count in counts.items()),
        *_table(source, with_rms=size <= _RMS_BYTES),
    ]
    if source.passengers:
        count = sum(int(np.prod(shape, dtype=np.int64)) for shape, _ in source.passengers.values())
        lines.append(f"  beside them: {len(source.passengers)} tensors of the image codec, {count:,} values")
    spans = {"text": vocabulary.text, "image": vocabulary.image, "speech": vocabulary.speech}
    official = " (the official layout)" if vocabulary.size == OFFICIAL_SIZE else ""
    lines.append(f"vocabulary {vocabulary.fingerprint()}: {vocabulary.size:,} ids{official}")
    lines += [f"  {name:<8} {span.start}..{span.stop - 1}" for name, span in spans.items()]
    lines.append("  " + ", ".join(f"{name} {token}" for name, token in vocabulary.markers.items()))
    lines.append(f"  check: {_vocabulary_check(source)}")
    lines += ["metadata", *(f"  {name}: {json.dumps(value, default=str)}" for name, value in source.metadata.items())]
    return [*lines, *(f"note: {warning}" for warning in source.warnings)]


def text_ids(source: Source, file: pathlib.Path) -> np.ndarray:
    """Joint ids of a text file, int32 [n]: by the tokenizer beside the weights, or the text codec of the model's world.

    Raises:
      UserError: no tokenizer, no text, or not UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}") from None
    found = next(
        (source.assets[name] for name in ("tokenizer.json", "text_tokenizer.json") if name in source.assets), None
    )
    if found:
        ids = np.asarray(TokenizerJson.load(found).encode(text), np.int32)
    elif source.metadata.get("world"):
        ids = source.vocabulary.text_ids(TextCodec.load(source.metadata["world"]).encode(text))
    else:
        raise UserError(f"{source.path}: brings no tokenizer.json, so it cannot read {file}")
    if len(ids) < 2:
        raise UserError(f"{file}: holds {len(ids)} tokens; a loss needs two")
    if int(ids.max()) >= source.vocabulary.size:
        raise UserError(f"{source.path}: its tokenizer gives id {ids.max()}; the model has {source.vocabulary.size}")
    return ids


def next_token_losses(model: Model, ids: np.ndarray) -> dict[NormOrder, float]:
    """Mean next-token loss in nats under either norm order; the wrong one reads the same weights as garbage.

    Args:
      ids: int [n]; cut into rows of up to 1024 tokens, each begun with bos.
    """
    length = max(1, min(_ROW, model.config.max_positions, len(ids) + 1) - 1)
    padded = np.full(-(-len(ids) // length) * length, model.vocabulary.pad, np.int32)
    padded[: len(ids)] = ids
    rows = np.insert(padded.reshape(-1, length), 0, model.vocabulary.bos, axis=1)
    real = (np.arange(len(padded)) < len(ids)).reshape(-1, length)
    losses: dict[NormOrder, float] = {}
    for order in _ORDERS:
        config = dataclasses.replace(model.config, norm_order=order)
        sums = [float(_loss_sum(model.params, config, row, mask)) for row, mask in zip(rows, real, strict=True)]
        losses[order] = sum(sums) / len(ids)
    return losses


@functools.partial(jax.jit, static_argnums=1)
def _loss_sum(params: Params, config: ModelConfig, row_s: jax.Array, real_s: jax.Array) -> jax.Array:
    hidden_bsd, _ = forward(params, config, row_s[None])
    scores_sv = jax.nn.log_softmax(logits(params, config, hidden_bsd)[0, :-1])
    picked_s = jnp.take_along_axis(scores_sv, row_s[1:, None], axis=-1)[:, 0]
    return -jnp.sum(jnp.where(real_s, picked_s, 0.0))


def describe_losses(model: Model, losses: dict[NormOrder, float], tokens: int, file: pathlib.Path) -> list[str]:
    """Lines about `next_token_losses`, with a warning when the other order than the checkpoint's is better.

    Args:
      tokens: of the text; a few words can favour either order by chance, so below 64 nothing is concluded.
    """
    own = model.config.norm_order
    other: NormOrder = "swin" if own == "pre" else "pre"
    says = f"{losses[own]:.3f} as the checkpoint says ({own}), {losses[other]:.3f} as {other}"
    lines = [f"next-token loss of {file} ({tokens} tokens): {says}"]
    if tokens < _ENOUGH:
        lines.append(f"note: too short a text to tell the norm order by; give one of {_ENOUGH} tokens or more")
    elif losses[other] < losses[own]:
        lines.append(
            f"WARNING: {other} reads this text better: the checkpoint's norm order is probably wrong; set swin_norm to "
            f"{json.dumps(other == 'swin')} in its config.json or params.json"
        )
    return lines


def _table(source: Source, *, with_rms: bool) -> list[str]:
    squares: dict[str, float] = collections.defaultdict(float)
    dtypes: dict[str, str] = {}
    for piece in [*pieces(source.config), *pieces(source.config, training_only=True)]:
        dtypes[piece.path] = source.dtype(piece).name
        if with_rms:
            squares[piece.path] += float(np.sum(np.square(source.read(piece).astype(np.float32)), dtype=np.float64))
    if with_rms:
        source.check()
    lines = []
    for path, spec in parameter_table(source.config).items():
        rms = f" rms {np.sqrt(squares[path] / np.prod(spec.shape)):.4f}" if with_rms else ""
        lines.append(f"    {path:<32} {dtypes[path]:<9} {'x'.join(map(str, spec.shape)):<18}{rms}".rstrip())
    return lines


def _vocabulary_check(source: Source) -> str:
    compared = files.check_token_ids(source.assets, source.vocabulary)
    if not any(found.names for found in compared):
        return "no tokenizer beside the weights, so no name could be compared with its id"
    rule = f"image id = code + {source.vocabulary.image.start}"
    parts = [f"{found.names:,} names of {found.file.name}" for found in compared]
    images = sum(found.images for found in compared)
    return f"{', '.join(parts)} have the ids of SPEC 1" + (f" ({rule})" if images else "; no image code is named")
