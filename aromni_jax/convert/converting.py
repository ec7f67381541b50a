"""Any format to any other, tensor by tensor."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import ml_dtypes
import numpy as np

from aromni_jax import store
from aromni_jax.convert.huggingface import HuggingFace, is_huggingface, write_huggingface
from aromni_jax.convert.meta import Meta, find_meta, write_meta
from aromni_jax.convert.model_folder import ModelFolder, write_model_folder
from aromni_jax.convert.peft import write_adapters
from aromni_jax.convert.source import Source
from aromni_jax.errors import UserError
from aromni_jax.signals import NotedSignals
from aromni_jax.vocabulary import JointVocabulary

Format = Literal["orbax", "hf", "hf-reference", "meta", "peft"]
FORMATS: tuple[Format, ...] = get_args(Format)
Dtype = Literal["float32", "bfloat16"]
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SHARD_BYTES = 5 * 10**9  # the Hub's own habit


def open_source(path: str | os.PathLike[str], vocabulary: JointVocabulary | None = None) -> Source:
    """Open a checkpoint of any format; which one is seen from its files, its keys and their ranks.

    Known: the name of a world for the model that comes with it; a model folder, a run or one of its checkpoints; a
    Hugging Face folder in either layout; a Meta folder (`models/7b/...` and `tokenizer/` inside, or the
    folder with params.json itself).

    Args:
      vocabulary: which one the model was made with. Needed where nothing says so (65,536 ids are the official layout).

    Raises:
      UserError: in one line, what is wrong, in which file, at which key.
    """
    path = _find(pathlib.Path(path))
    if (path / store.MODEL_FILE).is_file():
        return ModelFolder(path, vocabulary)
    if is_huggingface(path):
        return HuggingFace(path, vocabulary)
    if path.is_dir() and (meta := find_meta(path)):
        return Meta(meta, vocabulary)
    return ModelFolder(path, vocabulary)


def _find(path: pathlib.Path) -> pathlib.Path:
    """The path itself, or for the name of a shipped world the model that comes with it."""
    if path.exists():
        return path
    shipped = pathlib.Path(str(importlib.resources.files("aromni_jax"))) / "worlds" / path / "checkpoint"
    if path.name != str(path) or not shipped.is_dir():
        raise UserError(f"{path}: no such file or folder")
    return shipped


def convert(
    source: Source,
    target: str | os.PathLike[str],
    to: Format,
    *,
    dtype: Dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a checkpoint in another format: the whole of it or, whatever happens, nothing.

    Args:
      source: opened by `open_source`.
      target: new folder.
      to: "orbax" (a model folder), "hf" (what `transformers` reads), "hf-reference" (AR-Omni, Anole), "meta"; "peft":
        the adapters of a run alone, for its base in "hf".
      dtype: of the decoder's tensors, there and when they are loaded again; None = as stored.
      shard_bytes: of Hugging Face files.
      progress: called with the bytes of every tensor written.

    Raises:
      UserError: the target exists or cannot be written; the source is damaged, or has what the format cannot hold.
      KeyboardInterrupt: Ctrl-C or SIGTERM came; nothing is left behind.
    """
    kind = _DTYPES[dtype] if dtype else None
    with NotedSignals() as signals, _new_folder(pathlib.Path(target), signals) as folder:

        def count(written: int) -> None:
            if signals.name:
                raise _Stopped(signals.name)
            progress(written)

        if to == "orbax":
            write_model_folder(folder, source, kind, count)
        elif to == "meta":
            write_meta(folder, source, kind, count)
        elif to == "peft":
            write_adapters(folder, source, kind, count)
        else:
            write_huggingface(folder, source, to, kind, shard_bytes, count)
        source.check()
        count(0)


class _Stopped(Exception):
    """A signal came. No KeyboardInterrupt yet: that would leave writers in other threads behind."""


@contextlib.contextmanager
def _new_folder(path: pathlib.Path, signals: NotedSignals) -> Iterator[pathlib.Path]:
    """An empty folder under a temporary name, renamed to `path` when the block ends well and removed when not."""
    if path.exists():
        raise UserError(f"{path}: exists already; give another name or remove it")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.rename(partial, path)
    except UserError:
        raise
    except Exception as error:
        if signals.name:
            raise KeyboardInterrupt(signals.name) from None
        raise UserError(f"{path}: the model could not be written ({store.failure_reason(error)})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
