"""Meta folders, as AR-Omni's inference reads them: params.json, consolidated*.pth, a tokenizer folder (SPEC 3.5)."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from aromni_jax import store
from aromni_jax.config import ModelConfig
from aromni_jax.convert import assets as files
from aromni_jax.convert.extra import read_extra, write_extra
from aromni_jax.convert.layouts import Piece, ahead, external_shape, from_external, least_groups, pieces, to_external
from aromni_jax.convert.source import OURS, VQ, Source, check_shape, ours, own_vocabulary, with_ours
from aromni_jax.errors import UserError
from aromni_jax.tensorfile import Shaped
from aromni_jax.torchfile import TorchFile, write_torch
from aromni_jax.vocabulary import JointVocabulary

PARAMS, CONSOLIDATE = "params.json", "consolidate_params.json"
_KEYS = {
    "dim": "dim",
    "n_layers": "layers",
    "n_heads": "heads",
    "n_kv_heads": "kv_heads",
    "norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
}
_DEFAULTS = {"norm_eps": 1e-5, "rope_theta": 10_000.0, "multiple_of": 256, "swin_norm": False}
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


class Meta(Source):
    """An opened Meta folder; the shards of model-parallel ranks are joined, and each keeps its QK-norm for its heads.

    Raises:
      UserError: naming the file and the key: a shard or tensor that is missing, unknown or of another shape than
        params.json says; a file that holds anything but tensors.
    """

    layout = "meta"

    def __init__(self, folder: pathlib.Path, vocabulary: JointVocabulary | None) -> None:
        self.path = folder
        self.warnings = []
        values = _params(folder)
        self._shards = [TorchFile(file) for file in _shard_files(folder, values)]
        first = self._shards[0]
        if "output.weight" not in first.tensors or "tok_embeddings.weight" not in first.tensors:
            raise UserError(f"{first.path}: tensor tok_embeddings.weight or output.weight is missing")
        size, dtype = len(self._shards) * first.tensors["output.weight"][0][0], first.tensors["output.weight"][1]
        self.config = _model_config(values, size, dtype, len(self._shards), folder / PARAMS)
        tokenizer = next((p for p in (folder / "tokenizer", folder.parents[1] / "tokenizer") if p.is_dir()), folder)
        self.assets = files.find_assets(tokenizer)
        noted = values.get(OURS) or {}
        self.vocabulary = own_vocabulary(noted.get("vocabulary") or {}, self.config.vocab_size, vocabulary, folder)
        if named := files.token_ids(self.assets):
            files.check_token_ids(named[0], self.vocabulary, named[1])
        self.metadata = {"world": None, "template": None, **noted.get("metadata", {})}
        self._extra = read_extra(folder, self.config)
        self._vqgan = self._open_vqgan()
        self._check_tensors()

    def read(self, piece: Piece) -> np.ndarray:
        if piece.spec.external is None:
            assert self._extra is not None
            return self._extra.read(piece.path)
        name, axis = piece.name("meta"), piece.spec.external.parallel
        parts = [shard.read(name) for shard in self._shards]
        if axis is not None:
            whole = np.concatenate(parts, axis) if len(parts) > 1 else parts[0]
        elif all(np.array_equal(part, parts[0]) for part in parts):
            whole = parts[0]
        else:  # as Hugging Face's own conversion does; ranks that were trained apart may differ in the last bits
            whole = np.mean([part.astype(np.float32) for part in parts], axis=0).astype(parts[0].dtype)
            self.warnings.append(f"{self.path}: {name} differs between ranks; their mean is used")
        return from_external(whole, piece.spec, "meta", len(self._shards), f"{self.path}, {name}")

    def dtype(self, piece: Piece) -> np.dtype:
        if piece.spec.external is None:
            assert self._extra is not None
            return self._extra.tensors[piece.path][1]
        return self._shards[0].tensors[piece.name("meta")][1]

    @property
    def passengers(self) -> Mapping[str, Shaped]:
        kept = self._extra.tensors if self._extra else {}
        found = {name: shaped for name, shaped in kept.items() if name.startswith(VQ)}
        if self._vqgan and not found:
            # As in Hugging Face's own checkpoints: all but the decoder (SPEC 3.5).
            found = {VQ + name: shaped for name, shaped in self._vqgan.tensors.items() if "decoder" not in name}
        return found

    def read_passenger(self, name: str) -> np.ndarray:
        if self._extra and name in self._extra.tensors:
            return self._extra.read(name)
        assert self._vqgan is not None
        return self._vqgan.read(name.removeprefix(VQ))

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    def _open_vqgan(self) -> TorchFile | None:
        return TorchFile(self.assets["vqgan.ckpt"], inside="state_dict") if "vqgan.ckpt" in self.assets else None

    def _check_tensors(self) -> None:
        wanted = {piece.name("meta"): piece for piece in pieces(self.config)}
        ranks = len(self._shards)
        for shard in self._shards:
            for name, piece in wanted.items():
                if name not in shard.tensors:
                    raise UserError(f"{shard.path}: tensor {name} is missing")
                shape = list(external_shape(piece.spec, "meta", ranks))
                assert piece.spec.external is not None
                if (axis := piece.spec.external.parallel) is not None:
                    shape[axis] //= ranks
                check_shape(name, shard.tensors[name][0], tuple(shape), shard.path, PARAMS)
            for name in shard.tensors:
                if name not in wanted and name != "rope.freqs":
                    raise UserError(f"{shard.path}: tensor {name} is unknown; {PARAMS} describes a model without it")


def write_meta(folder: pathlib.Path, source: Source, dtype: np.dtype | None, progress: Callable[[int], None]) -> None:
    """Fill an existing, empty folder with models/<size>/ and tokenizer/, as AR-Omni's inference expects them.

    As many model-parallel ranks are written as the QK-norm vectors need: one, unless heads have vectors of their own.
    """
    ranks = _ranks(source)
    inner = folder / "models" / _size_name(source.config)
    inner.mkdir(parents=True)
    for rank in range(ranks):
        planned = {
            piece.name("meta"): (_rank_shape(piece, ranks), dtype or stored) for piece, stored in source.planned()
        }
        name = "consolidated.pth" if ranks == 1 else f"consolidated.{rank:02}.pth"
        write_torch(inner / name, planned, _tensors(source, dtype, rank, ranks, progress))
    store.write_json(inner / PARAMS, _params_json(source))
    store.write_json(inner / CONSOLIDATE, {"model_parallel_size": ranks})
    write_extra(inner, source, training=True, vq=True)
    tokenizer = folder / "tokenizer"
    files.write_assets(tokenizer, source.assets)
    if "text_tokenizer.json" not in source.assets and "tokenizer.json" in source.assets:
        text = files.renamed_tokenizer(source.assets["tokenizer.json"], to_hf=False)
        store.write_text(tokenizer / "text_tokenizer.json", text)


def _tensors(
    source: Source, dtype: np.dtype | None, rank: int, ranks: int, progress: Callable[[int], None]
) -> Iterator[tuple[str, np.ndarray]]:
    def job(piece: Piece, kind: np.dtype) -> Callable[[], tuple[str, np.ndarray]]:
        def read() -> tuple[str, np.ndarray]:
            array = source.read(piece).astype(kind, copy=False)
            tensor = to_external(array, piece.spec, "meta", ranks, f"{source.path}, {piece.label}")
            assert piece.spec.external is not None
            if ranks > 1 and (axis := piece.spec.external.parallel) is not None:
                tensor = np.split(tensor, ranks, axis)[rank]
            return piece.name("meta"), tensor

        return read

    for name, tensor in ahead([job(piece, dtype or stored) for piece, stored in source.planned()]):
        yield name, tensor
        progress(tensor.nbytes)


def _rank_shape(piece: Piece, ranks: int) -> tuple[int, ...]:
    shape = list(external_shape(piece.spec, "meta", ranks))
    assert piece.spec.external is not None
    if (axis := piece.spec.external.parallel) is not None:
        shape[axis] //= ranks
    return tuple(shape)


def _ranks(source: Source) -> int:
    """The least number of ranks in which every head norm is one vector per rank."""
    norms = [piece for piece in pieces(source.config) if piece.spec.external and piece.spec.external.heads]
    needed = {least_groups(source.read(piece)) for piece in norms}
    for ranks in (1, 2, 4, _MOST_RANKS):
        if source.config.kv_heads % ranks == 0 and all(ranks % groups == 0 for groups in needed):
            return ranks
    raise UserError(
        f"{source.path}: {max(needed)} groups of heads have QK-norm vectors of their own; Meta's layout has one per "
        f"rank, and {_MOST_RANKS} ranks at most. Convert to hf"
    )


def _params(folder: pathlib.Path) -> dict[str, Any]:
    """The two side files merged, the nested "model" on top (SPEC 3.5)."""
    values = files.read_object(folder / PARAMS)
    if (folder / CONSOLIDATE).is_file():
        values |= files.read_object(folder / CONSOLIDATE)
    nested = values.pop("model", {})
    return {**_DEFAULTS, **values, **nested}


def _shard_files(folder: pathlib.Path, values: Mapping[str, Any]) -> list[pathlib.Path]:
    if (folder / "consolidated.pth").is_file():
        return [folder / "consolidated.pth"]
    found = {p.name: p for p in folder.iterdir() if re.fullmatch(r"consolidated\.\d\d\.pth", p.name)}
    ranks = int(values.get("model_parallel_size") or len(found) or 1)
    wanted = [f"consolidated.{rank:02}.pth" for rank in range(ranks)]
    for name in wanted:
        if name not in found:
            raise UserError(f"{folder / name}: shard is missing; {ranks} are expected (model_parallel_size)")
    return [found[name] for name in wanted]


def _model_config(
    values: Mapping[str, Any], vocab_size: int, dtype: np.dtype, ranks: int, file: pathlib.Path
) -> ModelConfig:
    missing = [key for key in ("dim", "n_layers", "n_heads") if key not in values]
    if missing:
        raise UserError(f"{file}: key {missing[0]} is missing")
    if not values.get("qk_normalization", True):
        raise UserError(f"{file}: qk_normalization is false; this decoder has no model without it")
    if values.get("vocab_size", -1) not in (-1, None, vocab_size):
        raise UserError(f"{file}: vocab_size is {values['vocab_size']}, but the weights have {vocab_size} rows")
    known = {**values, "n_kv_heads": values.get("n_kv_heads") or values["n_heads"]}
    # Meta's rule for the hidden width (SPEC 3.1).
    width = int((values.get("ffn_dim_multiplier") or 1) * int(2 * 4 * values["dim"] / 3))
    multiple = values["multiple_of"]
    config = {
        **{our: known[their] for their, our in _KEYS.items()},
        "vocab_size": vocab_size,
        "ffn_dim": -(-width // multiple) * multiple,
        "head_dim": values["dim"] // values["n_heads"],
        "norm_order": "swin" if values["swin_norm"] else "pre",
    }
    noted = (values.get(OURS) or {}).get("model", {})
    positions = (values.get(OURS) or {}).get("max_positions", 4096)
    return with_ours({**config, "max_positions": positions}, noted, dtype, ranks, str(file))


def _params_json(source: Source) -> dict[str, Any]:
    config = source.config
    if config.head_dim * config.heads != config.dim:
        raise UserError(f"{source.path}: head_dim {config.head_dim} is not dim / heads, which Meta's layout wants")
    plain = int(2 * 4 * config.dim / 3)
    if -(-plain // 256) * 256 == config.ffn_dim:
        width: dict[str, Any] = {"multiple_of": 256}
    else:  # half a unit above, so that rounding down by Meta's rule gives the width whatever the division made of it
        width = {"multiple_of": 1, "ffn_dim_multiplier": (config.ffn_dim + 0.5) / plain}
    return {
        "model": {
            **{their: getattr(config, our) for their, our in _KEYS.items()},
            **width,
            "vocab_size": config.vocab_size,
            "qk_normalization": True,
            "swin_norm": config.norm_order == "swin",
        },
        OURS: {
            "model": ours(config),
            "max_positions": config.max_positions,
            "vocabulary": source.vocabulary.to_dict(),
            "metadata": dict(source.metadata),
        },
    }


def _size_name(config: ModelConfig) -> str:
    """The folder names that Meta's loaders know; "7b" for whatever is no 34B, since AR-Omni's code asks for that."""
    return "30b" if config.dim == 8192 else "7b"
