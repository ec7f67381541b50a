"""Hugging Face folders in both layouts (SPEC 3.4): safetensors or .bin, in shards or not; safetensors are written."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from aromni_jax import store
from aromni_jax.convert import assets as files
from aromni_jax.convert import hf_config
from aromni_jax.convert.card import model_card
from aromni_jax.convert.extra import read_extra, write_extra
from aromni_jax.convert.layouts import (
    Layout,
    Piece,
    ahead,
    external_shape,
    from_external,
    least_groups,
    pieces,
    to_external,
)
from aromni_jax.convert.source import OURS, VQ, Source, check_shape, own_vocabulary
from aromni_jax.convert.tokenizer import write_tokenizer
from aromni_jax.errors import UserError
from aromni_jax.tensorfile import Shaped, TensorFile, TensorWriter
from aromni_jax.torchfile import TorchFile
from aromni_jax.vocabulary import JointVocabulary

MANIFEST = "aromni_manifest.json"
_CONFIG = "config.json"
_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")  # a buffer that old versions of transformers stored


class TensorHolder(Protocol):
    """A file with tensors by name."""

    path: pathlib.Path
    tensors: dict[str, Shaped]

    def read(self, name: str) -> np.ndarray: ...

    def close(self) -> None: ...


def is_huggingface(folder: pathlib.Path) -> bool:
    """Whether a folder looks like one: a config.json and weights beside it."""
    return (folder / _CONFIG).is_file() and bool(_weight_files(folder))


class HuggingFace(Source):
    """An opened Hugging Face folder.

    Raises:
      UserError: naming the file and the key: a shard or tensor that is missing, unknown, cut off or of another shape
        than config.json says; a vocabulary with other image ids; a vocabulary that nobody names.
    """

    def __init__(self, folder: pathlib.Path, vocabulary: JointVocabulary | None) -> None:
        self.path = folder
        self.warnings = []
        values = files.read_object(folder / _CONFIG)
        self._files = _weight_files(folder)
        self._where = self._open(folder)
        probe = next((name for name in self._where if name.endswith("self_attn.q_norm.weight")), None)
        if probe is None:
            raise UserError(f"{folder}: no tensor is named ...self_attn.q_norm.weight; this is no Chameleon checkpoint")
        self.layout: Layout = "hf" if len(self._where[probe].tensors[probe][0]) == 2 else "hf-reference"
        groups = self._norm_groups() if self.layout == "hf" else 1
        dtype = self._where[probe].tensors[probe][1]
        self.config = hf_config.model_config(values, dtype, groups, folder / _CONFIG)
        self.assets = {**files.find_assets(folder), files.HF_CONFIG: folder / _CONFIG}
        noted = values.get(OURS) or {}
        self.vocabulary = own_vocabulary(noted.get("vocabulary") or {}, self.config.vocab_size, vocabulary, folder)
        if named := files.token_ids(self.assets):
            files.check_token_ids(named[0], self.vocabulary, named[1])
        if values.get("bos_token_id", self.vocabulary.bos) != self.vocabulary.bos:
            self.warnings.append(
                f"{folder / _CONFIG}: bos_token_id {values['bos_token_id']} is wrong; {self.vocabulary.bos} is used"
            )
        self.metadata = {"world": None, "template": None, **noted.get("metadata", {})}
        self._extra = read_extra(folder, self.config)
        self._checksums = _manifest_checksums(folder)
        self._check_tensors()

    def read(self, piece: Piece) -> np.ndarray:
        if piece.spec.external is None:
            assert self._extra is not None
            return self._extra.read(piece.path)
        name = piece.name(self.layout)
        return from_external(self._tensor(name), piece.spec, self.layout, where=f"{self.path}, {name}")

    def dtype(self, piece: Piece) -> np.dtype:
        name = piece.path if piece.spec.external is None else piece.name(self.layout)
        holder = self._extra if piece.spec.external is None else self._where[name]
        assert holder is not None
        return holder.tensors[name][1]

    @property
    def passengers(self) -> Mapping[str, Shaped]:
        return {name: holder.tensors[name] for name, holder in self._where.items() if name.startswith(VQ)}

    def read_passenger(self, name: str) -> np.ndarray:
        return self._tensor(name)

    def close(self) -> None:
        for holder in {id(holder): holder for holder in self._where.values()}.values():
            holder.close()

    def _tensor(self, name: str) -> np.ndarray:
        array = self._where[name].read(name)
        noted = self._checksums.get(name)
        if noted is not None and store.checksum(array) != noted:
            raise store.Damaged(f"{self._where[name].path}: tensor {name} is damaged (its checksum differs)")
        return array

    def _norm_groups(self) -> int:
        """How many groups of heads have QK-norm vectors of their own: 0 if every one has, as their layout would allow.

        Weights of the 7B release must stay such that one vector serves all, or they could not go back to its own code.
        """
        names = [name for name in self._where if re.search(r"self_attn\.[qk]_norm\.(weight|bias)$", name)]
        found = [least_groups(self._where[name].read(name)) for name in names]
        fewest = min(len(self._where[name].read(name)) for name in names)
        return max(found) if all(max(found) % groups == 0 for groups in found) and max(found) < fewest else 0

    def _open(self, folder: pathlib.Path) -> dict[str, TensorHolder]:
        """Every tensor's file, by the index where there is one."""
        index = next((file for file in self._files if file.name.endswith(".index.json")), None)
        if index is None:
            holder = _open_file(self._files[0])
            return dict.fromkeys(holder.tensors, holder)
        listed = files.read_object(index).get("weight_map")
        if not isinstance(listed, dict):
            raise UserError(f"{index}: has no weight_map")
        opened: dict[str, TensorHolder] = {}
        for shard in sorted(set(listed.values())):
            if pathlib.PurePath(str(shard)).name != shard:
                raise UserError(f"{index}: names the file {shard!r}, which is outside the folder")
            if not (folder / shard).is_file():
                raise UserError(f"{folder / shard}: shard is missing, though {index.name} lists it; fetch it again")
            opened[shard] = _open_file(folder / shard)
        for name, shard in listed.items():
            if name not in opened[shard].tensors:
                raise UserError(f"{folder / shard}: tensor {name} is missing, though {index.name} puts it there")
        return {name: opened[shard] for name, shard in listed.items()}

    def _check_tensors(self) -> None:
        wanted = {piece.name(self.layout): piece for piece in pieces(self.config)}
        for name, piece in wanted.items():
            if name not in self._where:
                raise UserError(f"{self.path}: tensor {name} is missing from the checkpoint")
            holder = self._where[name]
            shape = external_shape(piece.spec, self.layout)
            check_shape(name, holder.tensors[name][0], shape, holder.path, _CONFIG)
        for name, holder in self._where.items():
            if name not in wanted and not name.startswith(VQ) and not _IGNORED.fullmatch(name):
                raise UserError(f"{holder.path}: tensor {name} is unknown; {_CONFIG} describes a model without it")


def write_huggingface(
    folder: pathlib.Path,
    source: Source,
    layout: Layout,
    dtype: np.dtype | None,
    shard_bytes: int,
    progress: Callable[[int], None],
) -> None:
    """Fill an existing, empty folder with an upload-ready checkpoint.

    Args:
      dtype: of the decoder's tensors; None = as stored. What is no part of the decoder keeps its own.
      shard_bytes: largest file, unless one tensor is larger.
      progress: called with the bytes of every tensor written.
    """
    jobs: list[tuple[str, Shaped, Callable[[], np.ndarray]]] = []
    for piece, stored in source.planned():
        shape, kind = external_shape(piece.spec, layout), dtype or stored
        jobs.append((piece.name(layout), (shape, kind), _reader(source, piece, layout, kind)))
    for name, shaped in source.passengers.items():
        jobs.append((name, shaped, lambda name=name: source.read_passenger(name)))  # type: ignore[misc]
    shards = _shards(jobs, shard_bytes)
    weight_map: dict[str, str] = {}
    sums: dict[str, int] = {}
    written: dict[str, dict[str, Any]] = {}
    arrays = ahead([job[2] for job in jobs])
    for number, shard in enumerate(shards, 1):
        many = f"model-{number:05}-of-{len(shards):05}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else many
        with TensorWriter(folder / name, {j[0]: j[1] for j in shard}, {"format": "pt"}) as writer:
            for tensor, _, _ in shard:
                array = next(arrays)
                writer.write(tensor, array)
                sums[tensor], weight_map[tensor] = store.checksum(array), name
                progress(array.nbytes)
        written[name] = {"bytes": (folder / name).stat().st_size, "sha256": writer.sha256}
    if len(shards) > 1:
        total = sum(_size(job[1]) for job in jobs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        store.write_json(folder / "model.safetensors.index.json", index)
    extra = write_extra(folder, source, training=True, vq=False)
    kind_name = (dtype or source.planned()[0][1]).name
    config = hf_config.config_json(source, layout, kind_name)
    store.write_json(folder / _CONFIG, config)
    ends = sorted({source.vocabulary.eos, source.vocabulary.eom})
    generation = {"bos_token_id": source.vocabulary.bos, "eos_token_id": ends, "pad_token_id": config["pad_token_id"]}
    store.write_json(folder / "generation_config.json", generation)
    files.write_assets(folder, source.assets, without=(files.HF_CONFIG,))
    write_tokenizer(folder, source)
    store.write_text(folder / "README.md", model_card(source, layout, kind_name))
    store.write_json(
        folder / MANIFEST,
        {"source": source.path.name, "layout": layout, "files": {**written, **extra}, "tensors": sums},
    )


def _reader(source: Source, piece: Piece, layout: Layout, dtype: np.dtype) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = source.read(piece).astype(dtype, copy=False)
        return to_external(array, piece.spec, layout, where=f"{source.path}, {piece.label}")

    return read


def _shards(jobs: Sequence[Any], limit: int) -> list[list[Any]]:
    shards: list[list[Any]] = [[]]
    room = limit
    for job in jobs:
        size = _size(job[1])
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(job)
        room -= size
    return shards


def _size(shaped: Shaped) -> int:
    return int(np.prod(shaped[0], dtype=np.int64)) * shaped[1].itemsize


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The file to begin with, safetensors first and an index before what it lists; empty if there is none."""
    names = (
        "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
    )  # fmt: skip
    return [folder / name for name in names if (folder / name).is_file()][:1]


def _open_file(file: pathlib.Path) -> TensorHolder:
    return TensorFile(file) if file.suffix == ".safetensors" else TorchFile(file)


def _manifest_checksums(folder: pathlib.Path) -> dict[str, int]:
    """Checksums of our own manifest, if the folder has one and its files have the noted sizes."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, noted in manifest["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != noted["bytes"]:
            raise store.Damaged(f"{file}: has not the {noted['bytes']:,} bytes that {MANIFEST} notes; fetch it again")
    sums: dict[str, int] = manifest["tensors"]
    return sums
