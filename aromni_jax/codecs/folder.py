"""A codec on disk: one folder with `codec.json` and the weights, the same for every codec.

    codec.json            kind, config, weight file and its sha256, how it was trained, on what, measured figures
    weights.safetensors   float16 or float32 arrays, named by their slash-joined path in the nested dict of parameters
    text.model            for text: a SentencePiece model in place of the arrays

A name without a slash that names a world of this package ("numbers", "things") means the codecs shipped with it.
"""

import hashlib
import importlib.resources
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from aromni_jax.codecs.media import write_atomic
from aromni_jax.errors import UserError
from aromni_jax.worlds import WORLDS

CARD = "codec.json"
WEIGHTS = "weights.safetensors"
FORMAT = 1
Params = dict[str, Any]  # nested dicts, float32 arrays at the leaves


def find(path_or_name: str | os.PathLike, kind: str, others: str = "") -> Path:
    """The folder of a codec; `kind` is "image", "speech" or "text".

    A folder that holds `codec.json`, or one that holds a folder `kind` with it, or the name of a shipped world.
    Raises UserError when there is none; `others` are the other things that the caller would have taken.
    """
    folder = locate(path_or_name, kind)
    if folder is None:
        raise UserError(
            f"no {kind} codec at {path_or_name}: give a folder with {CARD}{others}, "
            f"or the name of a shipped world ({' or '.join(WORLDS)})"
        )
    return folder


def locate(path_or_name: str | os.PathLike, kind: str) -> Path | None:
    """As `find`, but None when there is no such folder."""
    shipped = Path(str(importlib.resources.files("aromni_jax"))) / "worlds" / str(path_or_name) / "codecs" / kind
    folders = (Path(path_or_name), Path(path_or_name) / kind, shipped)
    return next((folder for folder in folders if (folder / CARD).is_file()), None)


def kind_of(folder: Path) -> str:
    """ "image", "speech" or "text", as `codec.json` of a folder says; UserError if it cannot be read."""
    try:
        return str(json.loads((folder / CARD).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read {folder / CARD} ({error!r}); fetch the codec again") from error


def read_card(folder: Path, kind: str) -> dict[str, Any]:
    """`codec.json` of a folder, its kind and format checked, and the weight file's checksum compared."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        found, config, name, digest = card["kind"], card["config"], card["weights"], card["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read {folder / CARD} ({error!r}); fetch the codec again") from error
    if not isinstance(name, str):
        raise UserError(f"{folder / CARD}: weights is {name!r}; expected a file name; fetch the codec again")
    if found != kind or card.get("format") != FORMAT:
        raise UserError(
            f"{folder / CARD} describes a {found} codec of format {card.get('format')}; wanted: {kind}, format {FORMAT}"
        )
    weights = folder / name
    if not weights.is_file():
        raise UserError(f"{weights} is missing beside {CARD}; fetch the codec again")
    if sha256(weights.read_bytes()) != digest:
        raise UserError(f"{weights} does not have the checksum that {CARD} gives; fetch the codec again")
    if not isinstance(config, dict):
        raise UserError(f"{folder / CARD}: config must be an object; fetch the codec again")
    return card


def read_params(folder: Path, card: Mapping[str, Any]) -> Params:
    """The weights of a codec as nested dicts of float32 arrays."""
    try:
        flat = safetensors.numpy.load((folder / card["weights"]).read_bytes())
    except Exception as error:  # the library raises kinds of its own
        raise UserError(f"cannot read {folder / card['weights']} ({error}); fetch the codec again") from error
    return nest({name: value.astype(np.float32) for name, value in flat.items()})


def nest(flat: Mapping[str, Any]) -> Params:
    """One dict with slash-joined names -> nested dicts."""
    params: Params = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return params


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Inverse of `nest`."""
    flat: dict[str, np.ndarray] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}/") if isinstance(value, Mapping) else {name: np.asarray(value)}
    return flat


def pack_params(params: Mapping[str, Any], dtype: npt.DTypeLike = np.float16) -> bytes:
    """Parameters -> the bytes of a safetensors file (the error of a codec trained here is far above float16's)."""
    return safetensors.numpy.save({k: np.ascontiguousarray(v, dtype) for k, v in flatten(params).items()})


def write(folder: str | os.PathLike, kind: str, config: Mapping[str, Any], weights: bytes, card: Mapping) -> None:
    """Writes a codec folder; the card goes last, so that a folder with a card is whole.

    Args:
      card: free facts for the reader: training command, data, licence, figures.
    """
    folder = Path(folder)
    name = "text.model" if kind == "text" else WEIGHTS
    write_atomic(folder / name, lambda path: path.write_bytes(weights))
    digest = sha256(weights)
    body = {
        "format": FORMAT,
        "kind": kind,
        "config": dict(config),
        "weights": name,
        "sha256": digest,
        "fingerprint": fingerprint(config, digest),
        **card,
    }
    write_atomic(folder / CARD, lambda path: path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8"))


def fingerprint(config: Mapping[str, Any], digest: str) -> str:
    """16 hex digits that change whenever any code of any input can change."""
    return sha256(json.dumps(dict(config), sort_keys=True).encode() + digest.encode())[:16]


def digest(params: Mapping[str, Any]) -> str:
    """Hex SHA-256 of names, shapes and values: the same for the same weights, whatever file they come from."""
    state = hashlib.sha256()
    for name, value in sorted(flatten(params).items()):
        state.update(f"{name} {value.shape} {value.dtype}\n".encode())
        state.update(np.ascontiguousarray(value).data)
    return state.hexdigest()


def sha256(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()
