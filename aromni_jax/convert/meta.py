"""Meta folders, as AR-Omni's inference reads them: params.json, consolidated*.pth, a tokenizer folder (SPEC 3.5)."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from aromni_jax import store
from aromni_jax.config import ModelConfig
from aromni_jax.convert import assets as files
from aromni_jax.convert.extra import write_extra
from aromni_jax.convert.fields import Fields
from aromni_jax.convert.foreign import OURS, Foreign, check_expressible, check_layers, label, noted
from aromni_jax.convert.layouts import Piece, ahead, external_shape, from_external, least_groups, pieces, to_external
from aromni_jax.convert.manifest import entry, write_manifest
from aromni_jax.convert.source import VQ, Source, check_shape
from aromni_jax.errors import UserError
from aromni_jax.tensorfile import Shaped
from aromni_jax.torchfile import TorchFile, write_torch
from aromni_jax.vocabulary import JointVocabulary

PARAMS, CONSOLIDATE = "params.json", "consolidate_params.json"
_MOST_RANKS = 8


def find_meta(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder with params.json: this one, or the only one under models/; None if there is none.

    Raises:
      UserError: several sizes lie under models/.
    """
    if (folder / PARAMS).is_file():
        return folder
    found = sorted(file.parent for file in folder.glob(f"models/*/{PARAMS}"))
    if len(found) > 1:
        raise UserError(f"{folder}: holds {', '.join(path.name for path in found)} under models/; name one of them")
    return found[0] if found else None


class Meta(Foreign):
    """An opened Meta folder; the shards of model-parallel ranks are joined, and each keeps its QK-norm for its heads.

    Raises:
      UserError: naming the file and the key: a shard or tensor that is missing, unknown, of another shape than
        params.json says or of no floating kind; a file that holds anything but tensors.
      Damaged: a file is not what our manifest notes.
    """

    layout = "meta"

    def __init__(self, folder: pathlib.Path, vocabulary: JointVocabulary | None) -> None:
        self.path, self.warnings = folder, []
        self._vqgan: TorchFile | None = None
        values = _params(folder)
        self._shards = [TorchFile(file) for file in _shard_files(folder, values)]
        beside = (folder / "tokenizer", folder.absolute().parent.parent / "tokenizer")
        self.assets = files.find_assets(next((path for path in beside if path.is_dir()), folder))
        shared = _shared_fields(values, self._vocab_size(values))
        check_layers(shared["layers"], len(self._shards[0].tensors), values.where)
        dtypes = {dtype for shard in self._shards for _, dtype in shard.tensors.values()}
        self._describe(shared, values, dtypes, len(self._shards), vocabulary)
        self._check_tensors()

    def read(self, piece: Piece) -> np.ndarray:
        if piece.spec.external is None:
            return self._extra.read(piece.path)
        name, axis = piece.name("meta"), piece.spec.external.parallel
        parts = [self._manifest.read(shard, name) for shard in self._shards]
        if axis is not None:
            whole = np.concatenate(parts, axis) if len(parts) > 1 else parts[0]
        elif all(np.array_equal(part, parts[0]) for part in parts):
            whole = parts[0]
        else:  # as Hugging Face's own conversion does; ranks that were trained apart may differ in the last bits
            whole = np.mean([part.astype(np.float32) for part in parts], axis=0).astype(parts[0].dtype)
            warning = f"{self.path}: norms differ between ranks ({name}, ...); their mean is used"
            if not any("differ between ranks" in known for known in self.warnings):
                self.warnings.append(warning)
        return from_external(whole, piece.spec, "meta", len(self._shards), f"{self.path}, {name}")

    def dtype(self, piece: Piece) -> np.dtype:
        if piece.spec.external is None:
            return self._extra.tensors[piece.path][1]
        return self._shards[0].tensors[piece.name("meta")][1]

    @property
    def passengers(self) -> Mapping[str, Shaped]:
        if found := self._extra.passengers:
            return found
        # As in Hugging Face's own checkpoints: all of the image codec but its decoder (SPEC 3.5).
        codec = self._codec()
        return {VQ + name: shaped for name, shaped in codec.items() if "decoder" not in name}

    def read_passenger(self, name: str) -> np.ndarray:
        if name in self._extra.tensors:
            return self._extra.read(name)
        assert self._vqgan is not None
        return self._vqgan.read(name.removeprefix(VQ))

    def close(self) -> None:
        super().close()
        for file in (*self._shards, self._vqgan):
            if file is not None:
                file.close()

    def _codec(self) -> Mapping[str, Shaped]:
        """Tensors of vqgan.ckpt, opened when first asked for: a decoder loads without it."""
        if self._vqgan is None and files.VQGAN in self.assets:
            self._vqgan = TorchFile(self.assets[files.VQGAN], inside="state_dict", among_others=True)
        return self._vqgan.tensors if self._vqgan else {}

    def _vocab_size(self, values: Fields) -> int:
        name = "output.weight"
        if len(self._shards[0].tensors.get(name, ((), None))[0]) != 2:
            raise UserError(f"{self._shards[0].path}: tensor {name} is missing, or no matrix")
        size = len(self._shards) * self._shards[0].tensors[name][0][0]
        said = values.integer("vocab_size", size, least=-1)
        if said not in (-1, size):
            raise UserError(f"{values.where}: vocab_size is {said}, but the weights have {size} rows")
        return size

    def _check_tensors(self) -> None:
        wanted = {piece.name("meta"): piece for piece in pieces(self.config)}
        for shard in self._shards:
            for name, piece in wanted.items():
                if name not in shard.tensors:
                    raise UserError(f"{shard.path}: tensor {name} is missing")
                check_shape(name, shard.tensors[name], _rank_shape(piece, len(self._shards)), shard.path, PARAMS)
            for name in shard.tensors:
                if name not in wanted and name != "rope.freqs":
                    raise UserError(f"{shard.path}: tensor {name} is unknown; {PARAMS} describes a model without it")


def write_meta(folder: pathlib.Path, source: Source, dtype: np.dtype | None, progress: Callable[[int], None]) -> None:
    """Fill an existing, empty folder with models/<size>/ and tokenizer/, as AR-Omni's inference expects them.

    As many model-parallel ranks are written as the QK-norm vectors need: one, unless heads have vectors of their own.
    While a shard is written the disk holds it twice (`write_torch`).

    Raises:
      UserError: the model has what the layout cannot hold.
    """
    check_expressible(source.config, source.path, "meta")
    ranks = _ranks(source)
    inner = folder / "models" / _size_name(source.config)
    inner.mkdir(parents=True)
    manifest = {}
    for rank in range(ranks):
        planned = {p.name("meta"): (_rank_shape(p, ranks), dtype or stored) for p, stored in source.planned()}
        file = inner / ("consolidated.pth" if ranks == 1 else f"consolidated.{rank:02}.pth")
        sums: dict[str, int] = {}
        write_torch(file, planned, _tensors(source, dtype, rank, ranks, sums, progress))
        manifest[file.name] = entry(file, sums)
    store.write_json(inner / PARAMS, _params_json(source))
    store.write_json(inner / CONSOLIDATE, {"model_parallel_size": ranks})
    manifest |= write_extra(inner, source, training=True, vq=True)
    write_manifest(inner, manifest, source=source.path.absolute().name, layout="meta")
    tokenizer = folder / "tokenizer"
    files.write_assets(tokenizer, source.assets)
    if "text_tokenizer.json" not in source.assets and "tokenizer.json" in source.assets:
        text = files.renamed_tokenizer(source.assets["tokenizer.json"], to_hf=False)
        store.write_text(tokenizer / "text_tokenizer.json", text)


def _tensors(
    source: Source,
    dtype: np.dtype | None,
    rank: int,
    ranks: int,
    sums: dict[str, int],
    progress: Callable[[int], None],
) -> Iterator[tuple[str, np.ndarray]]:
    """What one rank holds, in the order of `planned`; fills `sums`."""

    def read(piece: Piece, kind: np.dtype) -> np.ndarray:
        array = source.read(piece).astype(kind, copy=False)
        tensor = to_external(array, piece.spec, "meta", ranks, label(piece, source))
        assert piece.spec.external is not None
        axis = piece.spec.external.parallel
        return tensor if ranks == 1 or axis is None else np.split(tensor, ranks, axis)[rank]

    planned = source.planned()
    arrays = ahead(functools.partial(read, piece, dtype or stored) for piece, stored in planned)
    for (piece, _), tensor in zip(planned, arrays, strict=True):
        name = piece.name("meta")
        sums[name] = store.checksum(tensor)
        yield name, tensor
        progress(tensor.nbytes)


def _rank_shape(piece: Piece, ranks: int) -> tuple[int, ...]:
    """Shape of the part of a tensor that each rank has."""
    shape = list(external_shape(piece.spec, "meta", ranks))
    assert piece.spec.external is not None
    if (axis := piece.spec.external.parallel) is not None:
        shape[axis] //= ranks
    return tuple(shape)


def _ranks(source: Source) -> int:
    """The least number of ranks in which every head norm is one vector per rank, and every tensor can be shared."""
    found = [
        piece for piece in pieces(source.config) if piece.spec.external and piece.spec.external.parallel is not None
    ]
    norms = [piece for piece in found if piece.spec.external and piece.spec.external.heads]
    needed = {least_groups(source.read(piece)) for piece in norms}
    sides = {external_shape(p.spec, "meta")[p.spec.external.parallel or 0] for p in found if p.spec.external} - {
        source.config.head_dim
    }
    sides |= {source.config.heads, source.config.kv_heads}
    for ranks in (1, 2, 4, _MOST_RANKS):
        if all(ranks % groups == 0 for groups in needed) and all(side % ranks == 0 for side in sides):
            return ranks
    raise UserError(
        f"{source.path}: {max(needed)} groups of heads have QK-norm vectors of their own; Meta's layout has one per "
        f"rank, and no number of ranks up to {_MOST_RANKS} fits the model's sizes. Convert to hf"
    )


def _params(folder: pathlib.Path) -> Fields:
    """The two side files merged as Meta's loader does: params, its nested "model", consolidate_params (SPEC 3.5)."""
    params = Fields.read(folder / PARAMS)
    nested = params.object("model").values
    consolidated = Fields.read(folder / CONSOLIDATE).values if (folder / CONSOLIDATE).is_file() else {}
    return Fields({**params.values, **nested, **consolidated}, params.where)


def _shard_files(folder: pathlib.Path, values: Fields) -> list[pathlib.Path]:
    if (folder / "consolidated.pth").is_file():
        return [folder / "consolidated.pth"]
    found = {p.name: p for p in folder.iterdir() if re.fullmatch(r"consolidated\.\d\d\.pth", p.name)}
    ranks = values.integer("model_parallel_size", max(1, len(found)))
    for rank in range(min(ranks, 100)):
        if f"consolidated.{rank:02}.pth" not in found:
            file = folder / f"consolidated.{rank:02}.pth"
            raise UserError(f"{file}: shard is missing; {ranks} are expected (model_parallel_size)")
    return [found[name] for name in sorted(found)][:ranks]


def _shared_fields(values: Fields, vocab_size: int) -> dict[str, Any]:
    """The keys of our model config that params.json has."""
    if not values.boolean("qk_normalization", True):
        raise UserError(f"{values.where}: qk_normalization is false; this decoder has no model without it")
    dim, heads = values.integer("dim"), values.integer("n_heads")
    # Meta's rule for the hidden width (SPEC 3.1).
    width = int(min(values.number("ffn_dim_multiplier", 1.0), 1e6) * int(2 * 4 * dim / 3))
    multiple = values.integer("multiple_of", 256)
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "layers": values.integer("n_layers"),
        "heads": heads,
        "kv_heads": values.integer("n_kv_heads", heads),
        "head_dim": max(1, dim // heads),
        "ffn_dim": -(-width // multiple) * multiple,
        "norm_order": "swin" if values.boolean("swin_norm", False) else "pre",
        "norm_eps": values.number("norm_eps", 1e-5),
        "rope_theta": values.number("rope_theta", 10_000.0),
        "max_positions": values.object(OURS).integer("max_positions", 4096),
    }


def _params_json(source: Source) -> dict[str, Any]:
    config = source.config
    plain = int(2 * 4 * config.dim / 3)
    if -(-plain // 256) * 256 == config.ffn_dim:
        width: dict[str, Any] = {"multiple_of": 256}
    else:  # half a unit above, so that rounding down by Meta's rule gives the width whatever the division made of it
        width = {"multiple_of": 1, "ffn_dim_multiplier": (config.ffn_dim + 0.5) / plain}
    return {
        "model": {
            "dim": config.dim,
            "n_layers": config.layers,
            "n_heads": config.heads,
            "n_kv_heads": config.kv_heads,
            "norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta,
            **width,
            "vocab_size": config.vocab_size,
            "qk_normalization": True,
            "swin_norm": config.norm_order == "swin",
        },
        OURS: {**noted(source), "max_positions": config.max_positions},
    }


def _size_name(config: ModelConfig) -> str:
    """The folder names that Meta's loaders know; "7b" for whatever is no 34B, since AR-Omni's code asks for that."""
    return "30b" if config.dim == 8192 else "7b"
