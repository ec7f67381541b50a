"""The project's own formats: a model folder (`params/` by Orbax, `aromni.json`), and the checkpoints of a run.

A model folder is written and read in pieces, so that a model of any size passes through a few of its layers' memory:
chunks of at most 64 MiB or one layer, uncompressed (weights do not compress).
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from aromni_jax import store
from aromni_jax.config import LoraConfig, ModelConfig, RunConfig
from aromni_jax.convert import assets as files
from aromni_jax.convert.extra import Extra, write_extra
from aromni_jax.convert.fields import Fields
from aromni_jax.convert.layouts import Piece, adapter_pieces, ahead, pieces
from aromni_jax.convert.manifest import Manifest, write_manifest
from aromni_jax.convert.source import Source
from aromni_jax.errors import UserError
from aromni_jax.model import ADAPTER, abstract_params, nest, parameter_table
from aromni_jax.tensorfile import Shaped
from aromni_jax.vocabulary import JointVocabulary

ASSETS = "assets"
_CHUNK_BYTES = 2**26


class ModelFolder(Source):
    """An opened model folder, or one checkpoint of a run (the newest complete one, if the run is named).

    A parameter of which the run keeps an average is read as its average, a matrix that has an adapter as their sum.

    Attributes:
      arrays: the folder with Orbax's arrays. checksums: of its arrays, by path.
      plain: whether the arrays there are the parameters as they are read.

    Raises:
      UserError: nothing there, of an unknown layout version, or with a vocabulary other than it says.
    """

    def __init__(self, path: pathlib.Path, vocabulary: JointVocabulary | None) -> None:
        self.warnings = []
        averaged: Mapping[str, Any] = {}
        if (path / store.MODEL_FILE).is_file():
            self.layout, file = "aromni", path / store.MODEL_FILE
            description = Fields(store.read_description(file), str(file))
            self.config = _model_config(description.object("config").values, file)
            checksums, metadata = description.object("checksums").values, description.object("metadata").values
        else:
            path = _step_folder(path)
            self.layout, file = "run", path / store.METADATA / store.METADATA
            description = Fields(store.read_description(file), str(file))
            recipe = description.object("config").values
            run = RunConfig.from_dict(recipe)
            self.config, sums = run.model, description.object("checksums")
            averaged = sums.object(store.AVERAGE).values if store.AVERAGE in sums.values else {}
            checksums = {**sums.object(store.PARAMS).values, **averaged}
            metadata = {
                "world": run.world,
                "template": run.template,
                "codecs": description.object("codecs").values,
                "step": description.integer("step", least=0),
                "recipe": recipe,
            }
        self.path, self.checksums, self.metadata = path, checksums, metadata
        self.arrays, self._averaged = path / store.PARAMS, averaged.keys()
        self._stored, self.lora = self.config, self.config.lora
        self.config = dataclasses.replace(self.config, lora=LoraConfig())
        self.plain = not averaged and not self.lora.rank
        self._adapters = {(piece.path, piece.layer): piece for piece in adapter_pieces(self.config, self.lora)}
        self.vocabulary = _vocabulary(description, vocabulary, path)
        size = self.vocabulary.size
        if size != self.config.vocab_size:
            raise UserError(f"{path}: the vocabulary has {size} ids, the model {self.config.vocab_size}")
        self.assets = files.find_assets(path / ASSETS)
        self._extra = Extra(path, Manifest(path))
        self._opened: dict[str, ts.TensorStore] = {}
        self._whole: dict[str, np.ndarray] = {}
        self._sums: dict[str, dict[int | None, int]] = collections.defaultdict(dict)

    def read(self, piece: Piece) -> np.ndarray:
        array = self._noted(piece)
        factors = [self._adapters.get((f"{piece.path}{ADAPTER}/{name}", piece.layer)) for name in ("a", "b")]
        if factors[0] and factors[1]:
            a, b = (self._noted(factor).astype(np.float32) for factor in factors if factor)
            array = array + self.lora.scale * np.tensordot(a, b, 1)
        return array.astype(self.dtype(piece), copy=False)

    def read_adapter(self, piece: Piece) -> np.ndarray:
        return self._noted(piece).astype(self.dtype(piece), copy=False)

    def dtype(self, piece: Piece) -> np.dtype:
        if piece.path in self._averaged:  # which is float32 whatever the parameters are
            return np.dtype(jnp.dtype(self._stored.param_dtype))
        dtype: np.dtype = self._array(piece.path).dtype.numpy_dtype
        return dtype

    def planned(self) -> list[tuple[Piece, np.dtype]]:
        plan = super().planned()
        if any(self._coarse(piece) for piece, _ in plan):
            # Layers that lie in one large chunk are read together, so they have to be asked for together.
            order = {path: number for number, path in enumerate(parameter_table(self.config))}
            plan.sort(key=lambda entry: order[entry[0].path])
        return plan

    def check(self) -> None:
        for path, parts in self._sums.items():
            whole = None in parts or len(parts) == self.config.layers
            if whole and self.checksums.get(path) != sum(parts.values()) % 2**32:
                raise store.Damaged(f"{self.arrays}: array {path} is damaged (its checksum differs)")

    @property
    def passengers(self) -> Mapping[str, Shaped]:
        return self._extra.passengers

    def read_passenger(self, name: str) -> np.ndarray:
        return self._extra.read(name)

    def close(self) -> None:
        self._extra.close()

    def _noted(self, piece: Piece) -> np.ndarray:
        array = self._read(piece)
        self._sums[piece.path][piece.layer] = store.checksum(array, array.size * (piece.layer or 0))
        return array

    def _read(self, piece: Piece) -> np.ndarray:
        array = self._array(piece.path)
        try:
            if piece.layer is None or not self._coarse(piece):
                part: np.ndarray = (array if piece.layer is None else array[piece.layer]).read().result()
                return part
            if piece.path not in self._whole:
                matrix = piece.path.partition(ADAPTER)[0]  # before the next one is read, the last one goes
                self._whole = {path: kept for path, kept in self._whole.items() if path.partition(ADAPTER)[0] == matrix}
                self._whole[piece.path] = array.read().result()
            return self._whole[piece.path][piece.layer]
        except ValueError as error:
            reason = store.failure_reason(error)
            raise store.Damaged(f"{self.arrays}: array {piece.path} cannot be read ({reason})") from None

    def _coarse(self, piece: Piece) -> bool:
        """Whether one layer cannot be read without many others (as training writes them)."""
        array = self._array(piece.path)
        chunk = [int(side or 1) for side in array.chunk_layout.read_chunk.shape or (1,)]
        size = math.prod(chunk) * array.dtype.numpy_dtype.itemsize
        return piece.layer is not None and chunk[0] > 1 and size > _CHUNK_BYTES

    def _array(self, path: str) -> ts.TensorStore:
        if not self._opened:
            store.check_shapes(self.arrays, abstract_params(self._stored))
        if path not in self._opened:
            arrays = self.path / store.AVERAGE if path in self._averaged else self.arrays
            folder = str(arrays.absolute())
            ocdbt = (arrays / "manifest.ocdbt").is_file()
            within = path.replace("/", ".") + "/"
            files_at = {"driver": "file", "path": f"{folder}/{within}"}
            kvstore = {"driver": "ocdbt", "base": f"file://{folder}/", "path": within} if ocdbt else files_at
            found, error = store.attempt(lambda: ts.open({"driver": "zarr", "kvstore": kvstore}).result())
            if found is None:
                reason = store.failure_reason(error) if error else "not found"
                raise store.Damaged(f"{arrays}: array {path} cannot be read ({reason})")
            self._opened[path] = found
        return self._opened[path]


def write_model_folder(
    folder: pathlib.Path, source: Source, dtype: np.dtype | None, progress: Callable[[int], None]
) -> None:
    """Fill an existing, empty folder with a model folder.

    Args:
      dtype: of the stored arrays, and of the parameters when they are loaded; None = both as the source has them.
    """
    config = (
        RunConfig.from_dict({"model": {**dataclasses.asdict(source.config), "param_dtype": dtype.name}}).model
        if dtype
        else source.config
    )
    stacked = _stacked(source, dtype, progress)

    def write() -> None:
        registry = ocp.type_handlers.create_type_handler_registry((_Stacked, _StackedHandler()))
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_ocdbt=False)
        with ocp.Checkpointer(handler) as writer:
            writer.save((folder / store.PARAMS).absolute(), args=ocp.args.PyTreeSave(nest(stacked)))

    _, error = store.attempt(write)
    if error:
        raise error
    (folder / store.PARAMS / "commit_success.txt").unlink(missing_ok=True)  # names a path of this machine
    write_manifest(folder, write_extra(folder, source, training=False, vq=True))
    files.write_assets(folder / ASSETS, source.assets)
    description = {
        "layout_version": store.LAYOUT_VERSION,
        "config": dataclasses.asdict(config),
        "vocabulary": source.vocabulary.to_dict(),
        "vocabulary_fingerprint": source.vocabulary.fingerprint(),
        "checksums": {path: array.checksum for path, array in stacked.items()},
        "metadata": {"world": None, "template": None, **source.metadata},
    }
    store.write_json(folder / store.MODEL_FILE, description)


@dataclasses.dataclass
class _Stacked:
    """A parameter to be written: its parts come one after the other along axis 0; `checksum` grows with them."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterator[np.ndarray]]
    checksum: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class _StackedHandler(ocp.type_handlers.NumpyHandler):
    """Lets Orbax write `_Stacked` as it writes numpy arrays, but part by part, one parameter after the other."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def _open_and_write(self, value: _Stacked, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        # Nothing is awaited on purpose: Orbax starts all parameters at once, and one at a time is what memory allows.
        row = math.prod(value.shape[1:]) * value.dtype.itemsize
        rows = max(1, min(value.shape[0], _CHUNK_BYTES // max(1, row)))
        tspec["metadata"] |= {"chunks": [rows, *value.shape[1:]], "compressor": None}
        array = ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context).result()
        start = 0
        for part in _gathered(value.parts(), rows):
            value.checksum = (value.checksum + store.checksum(part, start * part[0].size)) % 2**32
            array[start : start + len(part)].write(part).result()
            start += len(part)


def _gathered(parts: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Parts joined until they have `rows` rows, so that a chunk is written once."""
    held: list[np.ndarray] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= rows:
            yield held[0] if len(held) == 1 else np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _stacked(source: Source, dtype: np.dtype | None, progress: Callable[[int], None]) -> dict[str, _Stacked]:
    grouped: dict[str, list[Piece]] = {}
    for piece in [*pieces(source.config), *pieces(source.config, training_only=True)]:
        grouped.setdefault(piece.path, []).append(piece)

    def parts(group: list[Piece], kind: np.dtype) -> Iterator[np.ndarray]:
        def job(piece: Piece) -> Callable[[], np.ndarray]:
            return lambda: source.read(piece).astype(kind, copy=False)

        for piece, array in zip(group, ahead([job(piece) for piece in group]), strict=True):
            yield array if piece.layer is None else array[None]
            progress(array.nbytes)

    found = {}
    for path, group in grouped.items():
        kind, first = dtype or source.dtype(group[0]), group[0]
        shape = first.spec.shape if first.layer is None else (len(group), *first.spec.shape)
        found[path] = _Stacked(shape, kind, lambda group=group, kind=kind: parts(group, kind))  # type: ignore[misc]
    return found


def _vocabulary(description: Fields, given: JointVocabulary | None, path: pathlib.Path) -> JointVocabulary:
    own = JointVocabulary.from_dict(description.object("vocabulary").values)
    if own.fingerprint() != description.text("vocabulary_fingerprint"):
        raise UserError(f"{path}: its vocabulary does not match its own fingerprint; the description was edited")
    if given is not None and given.fingerprint() != own.fingerprint():
        raise UserError(
            f"{path}: made with vocabulary {own.fingerprint()}, but {given.fingerprint()} is in use: take the "
            "codecs and prompts that belong to the model"
        )
    return own


def _step_folder(path: pathlib.Path) -> pathlib.Path:
    """The checkpoint that a path means: itself, or the newest complete one of a run."""
    if (path / store.METADATA).is_dir():
        return path
    run = path.parent if path.name == store.CHECKPOINTS else path
    steps = store.complete_steps(run)
    if not steps:
        raise UserError(
            f"{path}: no model here: neither a model folder ({store.MODEL_FILE}), nor a run or checkpoint that is "
            "complete, nor weights of Hugging Face (config.json) or Meta (params.json)"
        )
    return run / store.CHECKPOINTS / str(steps[-1])


def _model_config(values: Mapping[str, Any], file: pathlib.Path) -> ModelConfig:
    try:
        return RunConfig.from_dict({"model": values}).model
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
