"""Hugging Face folders in both layouts (SPEC 3.4): safetensors or .bin, in shards or not; safetensors are written."""

from __future__ import annotations

import functools
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aromni_jax import store
from aromni_jax.convert import assets as files
from aromni_jax.convert import hf_config
from aromni_jax.convert.card import model_card
from aromni_jax.convert.extra import write_extra
from aromni_jax.convert.fields import Fields
from aromni_jax.convert.foreign import Foreign, check_layers, label, norm_groups
from aromni_jax.convert.layouts import Layout, Piece, ahead, external_shape, from_external, pieces, to_external
from aromni_jax.convert.manifest import FileEntry, TensorHolder, entry, write_manifest
from aromni_jax.convert.source import VQ, Source, check_shape
from aromni_jax.convert.tokenizer import write_tokenizer
from aromni_jax.errors import UserError
from aromni_jax.tensorfile import Shaped, TensorFile, TensorWriter
from aromni_jax.torchfile import TorchFile
from aromni_jax.vocabulary import JointVocabulary

_CONFIG = "config.json"
_QUERY_NORM = re.compile(r".*self_attn\.q_norm\.weight")
_NORMS = re.compile(r".*self_attn\.[qk]_norm\.(weight|bias)")
_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")  # a buffer that old versions of transformers stored
_INDEX = ".index.json"
Job = tuple[str, Shaped, Callable[[], np.ndarray]]


def is_huggingface(folder: pathlib.Path) -> bool:
    """Whether a folder looks like one: a config.json and weights beside it."""
    return (folder / _CONFIG).is_file() and _weight_file(folder) is not None


class HuggingFace(Foreign):
    """An opened Hugging Face folder.

    Raises:
      UserError: naming the file and the key: a shard or tensor that is missing, unknown, cut off, of another shape than
        config.json says or of no floating kind; a vocabulary with other image ids, or one that nobody names.
      Damaged: a file is not what our manifest notes.
    """

    def __init__(self, folder: pathlib.Path, vocabulary: JointVocabulary | None) -> None:
        self.path, self.warnings = folder, []
        values = Fields.read(folder / _CONFIG)
        self._where = _open(folder)
        decoder = {name: holder.tensors[name] for name, holder in self._where.items() if not name.startswith(VQ)}
        probe = next((name for name in decoder if _QUERY_NORM.fullmatch(name)), None)
        if probe is None:
            raise UserError(f"{folder}: no tensor is named ...self_attn.q_norm.weight; this is no Chameleon checkpoint")
        rank = len(decoder[probe][0])
        self.layout: Layout = "hf" if rank == 2 else "hf-reference"
        norms = [
            name for name, (shape, _) in decoder.items() if _NORMS.fullmatch(name) and len(shape) == 2 and all(shape)
        ]
        groups = norm_groups(self._where[name].read(name) for name in norms) if rank == 2 and norms else 1
        shared = hf_config.shared_fields(values)
        check_layers(shared["layers"], len(decoder), values.where)
        self.assets = {**files.find_assets(folder), files.HF_CONFIG: folder / _CONFIG}
        self._describe(shared, values, (dtype for _, dtype in decoder.values()), groups, vocabulary)
        bos, found = self.vocabulary.bos, values.values.get("bos_token_id")
        if found not in (None, bos):
            self.warnings.append(f"{folder / _CONFIG}: bos_token_id {found} is wrong; {bos} is used")
        self._check_tensors()

    def read(self, piece: Piece) -> np.ndarray:
        if piece.spec.external is None:
            return self._extra.read(piece.path)
        name = piece.name(self.layout)
        array = self._manifest.read(self._where[name], name)
        return from_external(array, piece.spec, self.layout, where=f"{self._where[name].path}, {name}")

    def dtype(self, piece: Piece) -> np.dtype:
        if piece.spec.external is None:
            return self._extra.tensors[piece.path][1]
        name = piece.name(self.layout)
        return self._where[name].tensors[name][1]

    @property
    def passengers(self) -> Mapping[str, Shaped]:
        return {name: holder.tensors[name] for name, holder in self._where.items() if name.startswith(VQ)}

    def read_passenger(self, name: str) -> np.ndarray:
        return self._manifest.read(self._where[name], name)

    def close(self) -> None:
        super().close()
        for holder in {id(holder): holder for holder in self._where.values()}.values():
            holder.close()

    def _check_tensors(self) -> None:
        wanted = {piece.name(self.layout): piece for piece in pieces(self.config)}
        for name, piece in wanted.items():
            if name not in self._where:
                raise UserError(f"{self.path}: tensor {name} is missing from the checkpoint")
            holder, shape = self._where[name], external_shape(piece.spec, self.layout)
            check_shape(name, holder.tensors[name], shape, holder.path, _CONFIG)
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

    Raises:
      UserError: the model has what the layout cannot hold.
    """
    planned = source.planned()
    kind = (dtype or planned[0][1]).name
    config = hf_config.config_json(source, layout, kind)  # what it refuses, it refuses before anything is written
    jobs: list[Job] = []
    for piece, stored in planned:
        shaped = external_shape(piece.spec, layout), dtype or stored
        jobs.append((piece.name(layout), shaped, functools.partial(_external, source, piece, layout, shaped[1])))
    for name, shaped in source.passengers.items():
        jobs.append((name, shaped, functools.partial(source.read_passenger, name)))
    manifest = _write_shards(folder, jobs, shard_bytes, progress)
    manifest |= write_extra(folder, source, training=True, vq=False)
    store.write_json(folder / _CONFIG, config)
    ends = sorted({source.vocabulary.eos, source.vocabulary.eom})
    generation = {"bos_token_id": source.vocabulary.bos, "eos_token_id": ends, "pad_token_id": config["pad_token_id"]}
    store.write_json(folder / "generation_config.json", generation)
    files.write_assets(folder, source.assets, without=(files.HF_CONFIG, files.VQGAN))
    if files.VQGAN in source.assets:
        source.warnings.append(
            f"{files.VQGAN} stays behind: it is a pickle, which a Hugging Face folder should not hold"
        )
    write_tokenizer(folder, source)
    store.write_text(folder / "README.md", model_card(source, layout, kind))
    write_manifest(folder, manifest, source=source.path.absolute().name, layout=layout)


def _write_shards(
    folder: pathlib.Path, jobs: Sequence[Job], shard_bytes: int, progress: Callable[[int], None]
) -> dict[str, FileEntry]:
    """Write tensors into one file, or several with an index; returns their entries for the manifest."""
    shards = _shards(jobs, shard_bytes)
    weight_map: dict[str, str] = {}
    entries: dict[str, FileEntry] = {}
    arrays = ahead(job[2] for job in jobs)
    for number, shard in enumerate(shards, 1):
        numbered = f"model-{number:05}-of-{len(shards):05}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else numbered
        sums: dict[str, int] = {}
        with TensorWriter(folder / name, {tensor: shaped for tensor, shaped, _ in shard}, {"format": "pt"}) as writer:
            for (tensor, _, _), array in zip(shard, itertools.islice(arrays, len(shard)), strict=True):
                writer.write(tensor, array)
                sums[tensor], weight_map[tensor] = store.checksum(array), name
                progress(array.nbytes)
        entries[name] = entry(folder / name, sums, writer.sha256)
    if len(shards) > 1:
        total = sum(_size(shaped) for _, shaped, _ in jobs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        store.write_json(folder / f"model.safetensors{_INDEX}", index)
    return entries


def _external(source: Source, piece: Piece, layout: Layout, dtype: np.dtype) -> np.ndarray:
    return to_external(source.read(piece).astype(dtype, copy=False), piece.spec, layout, where=label(piece, source))


def _shards(jobs: Sequence[Job], limit: int) -> list[list[Job]]:
    shards: list[list[Job]] = [[]]
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
    return math.prod(shaped[0]) * shaped[1].itemsize


def _weight_file(folder: pathlib.Path) -> pathlib.Path | None:
    """The file to begin with: safetensors before .bin, an index before what it lists."""
    names = (f"model.safetensors{_INDEX}", "model.safetensors", f"pytorch_model.bin{_INDEX}", "pytorch_model.bin")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None and (
        shards := [*folder.glob("model-*-of-*.safetensors"), *folder.glob("pytorch_model-*-of-*.bin")]
    ):
        index = names[0] if shards[0].suffix == ".safetensors" else names[2]
        raise UserError(f"{folder / index}: is missing, though {shards[0].name} is a shard; fetch it again")
    return found


def _open(folder: pathlib.Path) -> dict[str, TensorHolder]:
    """Every tensor's file, by the index where there is one."""
    first = _weight_file(folder)
    assert first is not None, "is_huggingface was asked"
    if not first.name.endswith(_INDEX):
        holder = _open_file(first)
        return dict.fromkeys(holder.tensors, holder)
    listed = Fields.read(first).object("weight_map")
    shards = {name: listed.text(name) for name in listed.values}
    opened: dict[str, TensorHolder] = {}
    for shard in sorted(set(shards.values())):
        if pathlib.PurePath(shard).name != shard:
            raise UserError(f"{first}: names the file {shard!r}, which is outside the folder")
        if not (folder / shard).is_file():
            raise UserError(f"{folder / shard}: shard is missing, though {first.name} lists it; fetch it again")
        opened[shard] = _open_file(folder / shard)
    for name, shard in shards.items():
        if name not in opened[shard].tensors:
            raise UserError(f"{folder / shard}: tensor {name} is missing, though {first.name} puts it there")
    for shard, holder in opened.items():
        for name in holder.tensors:
            if shards.get(name) != shard:
                raise UserError(f"{folder / shard}: tensor {name} is unknown; {first.name} does not put it there")
    return {name: opened[shard] for name, shard in shards.items()}


def _open_file(file: pathlib.Path) -> TensorHolder:
    return TensorFile(file) if file.suffix == ".safetensors" else TorchFile(file)
