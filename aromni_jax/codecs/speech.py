"""The speech codec: mono waves <-> codes, batches of any lengths or a stream, whichever network computes them."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aromni_jax.buckets import bucket
from aromni_jax.codecs import folder as store
from aromni_jax.codecs import vq, wavtokenizer_files
from aromni_jax.codecs.small_speech import SmallSpeech
from aromni_jax.codecs.streaming import SpeechStream
from aromni_jax.codecs.wavtokenizer import WavTokenizer
from aromni_jax.errors import UserError

_STEP = 16  # tokens: calls are multiples of it wide
_LARGEST_BATCH = 32
_ROWS_OF_A_STEP = 2  # what the length of a call costs, in rows: measured with WavTokenizer on a CPU
_TOKENS_PER_CALL = 4096  # bounds the memory of a call; one row may have more
_TOKENS_ON_CPU = 512  # what still fits its caches, by benchmarks/speech_torch.py: a tenth faster than all rows at once
Ragged = np.ndarray | Sequence[np.ndarray]


class Network(Protocol):
    """What computes codes and waves: frozen and hashable (a static argument of `jit`), its parameters beside it.

    Every row of a batch must come out as it would alone, whatever lies behind its end.

    Attributes:
      architecture: its name in `codec.json`. stored: dtype of its saved parameters.
      config: frozen dataclass of JSON types. sample_rate: hertz. hop: samples per code. num_codes: of the codebook.
    """

    architecture: ClassVar[str]
    stored: ClassVar[type]

    @classmethod
    def create(cls, values: Mapping[str, Any], *, dtype: str, bandwidth_id: int) -> "Network":
        """From the config of a card; TypeError when its names are not the network's, ValueError when it is none."""
        ...

    @property
    def config(self) -> Any: ...

    @property
    def sample_rate(self) -> int: ...

    @property
    def hop(self) -> int: ...

    @property
    def num_codes(self) -> int: ...

    def check(self, params: vq.Params, where: Path) -> None:
        """UserError unless these are its parameters."""
        ...

    def encode(self, params: vq.Params, wave_bn: jax.Array, samples_b: jax.Array) -> jax.Array:
        """float32 [b, t * hop], zero behind a row's samples -> int32 [b, t], anything behind a row's codes."""
        ...

    def decode(self, params: vq.Params, codes_bt: jax.Array, tokens_b: jax.Array) -> jax.Array:
        """int32 [b, t] -> float32 [b, t * hop], anything behind a row's end."""
        ...


NETWORKS: dict[str, type[Network]] = {network.architecture: network for network in (SmallSpeech, WavTokenizer)}


@functools.partial(jax.jit, static_argnames=("network", "rows"))
def _encode(
    params: vq.Params, wave_bn: jax.Array, samples_b: jax.Array, network: Network, rows: NamedSharding | None
) -> jax.Array:
    return _per_device(network.encode, rows)(params, wave_bn, samples_b)


@functools.partial(jax.jit, static_argnames=("network", "rows"))
def _decode(
    params: vq.Params, codes_bt: jax.Array, tokens_b: jax.Array, network: Network, rows: NamedSharding | None
) -> jax.Array:
    return _per_device(network.decode, rows)(params, codes_bt, tokens_b)


def _per_device(function: Callable[..., jax.Array], rows: NamedSharding | None) -> Callable[..., jax.Array]:
    """Each device computes its own rows; no row needs another, so nothing is sent between devices."""
    if rows is None:
        return function
    whole = PartitionSpec()
    return jax.shard_map(
        function, mesh=rows.mesh, in_specs=(whole, rows.spec, rows.spec), out_specs=rows.spec, check_vma=False
    )


@dataclasses.dataclass(frozen=True)
class SpeechCodec:
    """Speech <-> codes in [0, num_codes), `tokens_per_second` of them.

    Every row of a batch gives what it gives alone: what lies behind a row's end is silence and is masked. A last
    piece shorter than a token is filled up as the network does it (silence, or its own reflection). Lengths are
    rounded up to a few sizes, so that a new length seldom compiles anew.

    Attributes:
      network: what computes; its `config` is also this codec's. params: {"net": nested dict, "codebook": [k, e]}.
      fingerprint: 16 hex digits of config and weights.
      batch_sharding: how the rows of a batch are spread over devices; see `sharded`.
    """

    network: Network
    params: vq.Params
    fingerprint: str
    batch_sharding: NamedSharding | None = None

    @classmethod
    def load(cls, path_or_name: str | os.PathLike, *, dtype: str = "float32", bandwidth_id: int = 0) -> "SpeechCodec":
        """From a codec folder, a folder of published WavTokenizer files, or the name of a shipped world.

        Args:
          dtype: of the products of matrices in WavTokenizer, "float32" or "bfloat16" (faster on accelerators; some
            codes come out differently, so the fingerprint differs).
          bandwidth_id: row of WavTokenizer's decoder that conditions on a bandwidth; encoding does not depend on it.

        Raises:
          UserError: nothing there, damaged, weights that do not fit their config, or an option out of range.
        """
        network, params, fingerprint = _read(path_or_name, dtype, bandwidth_id)
        if dtype != "float32":  # other codes for the same speech
            fingerprint = store.fingerprint({"dtype": dtype}, fingerprint)
        return cls(network, jax.tree.map(jnp.asarray, params), fingerprint)

    def save(self, folder: str | os.PathLike, card: Mapping[str, Any] | None = None) -> None:
        """Writes a codec folder that `load` reads without PyTorch; `card`: free facts for the reader."""
        weights = store.pack_params(self.params, self.network.stored)
        config = dataclasses.asdict(self.config)
        store.write(folder, "speech", config, weights, {"architecture": self.network.architecture, **(card or {})})

    def sharded(self, mesh: Mesh, axes: str | Sequence[str] | None = None) -> "SpeechCodec":
        """The same codec, with the rows of a batch spread over `axes` of the mesh (default: all of them).

        The weights are on every device. Codes and waves come back to the host, so all devices must be this process's
        own: of several processes, each takes its share of the utterances.

        Raises:
          UserError: an axis that the mesh has not, or a mesh of several processes.
        """
        params, batch_sharding = vq.spread(self.params, mesh, axes)
        return dataclasses.replace(self, params=params, batch_sharding=batch_sharding)

    @property
    def config(self) -> Any:
        """The network's config, a frozen dataclass."""
        return self.network.config

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        return self.network.num_codes

    @property
    def sample_rate(self) -> int:
        """Hertz, of the waves on both sides."""
        return self.network.sample_rate

    @property
    def hop(self) -> int:
        """Samples per token."""
        return self.network.hop

    @property
    def tokens_per_second(self) -> float:
        """Codes per second of speech."""
        return self.sample_rate / self.hop

    @property
    def codebook(self) -> np.ndarray:
        """float32 [num_codes, e]: the vectors that the codes stand for."""
        return np.asarray(self.params["codebook"])

    def encode(self, wave_bn: np.ndarray, lengths: Sequence[int] | None = None) -> np.ndarray | list[np.ndarray]:
        """float [B, n] at `sample_rate` -> int32 [B, ceil(n / hop)].

        With `lengths` (samples per row; what lies behind is not heard) a list of int32 [ceil(length / hop)].
        Raises UserError: no samples, another shape or dtype, NaN, a length outside 1..n.
        """
        try:
            wave_bn = np.asarray(wave_bn)
        except ValueError as error:
            raise UserError("speech must be one array: fill short rows up, and give lengths") from error
        if wave_bn.ndim != 2 or not wave_bn.shape[1]:
            raise UserError(f"speech must be an array [rows, samples] with samples, not {list(wave_bn.shape)}")
        if wave_bn.dtype.kind != "f":
            raise UserError(f"speech has type {wave_bn.dtype}; give floats in [-1, 1]")
        samples_b = self._lengths(lengths, wave_bn, "samples")
        wave_bn = np.where(np.arange(wave_bn.shape[1]) < samples_b[:, None], wave_bn, 0).astype(np.float32)
        if not np.isfinite(wave_bn).all():
            raise UserError("speech holds NaN or infinite values")
        rows = self._run(_encode, wave_bn, samples_b, self.hop, _STEP)
        rows = [codes[: -(-samples // self.hop)] for codes, samples in zip(rows, samples_b, strict=True)]
        if lengths is not None:
            return rows
        return np.stack(rows) if rows else np.zeros((0, -(-wave_bn.shape[1] // self.hop)), np.int32)

    def decode(
        self, codes: Ragged, lengths: Sequence[int] | None = None, *, width: int = _STEP
    ) -> np.ndarray | list[np.ndarray]:
        """int [B, T] -> float32 [B, T * hop]; speech is in [-1, 1], what lies outside is for the writer to clip.

        With `lengths` (codes per row) or a list of int [T_i] in place of an array, a list of float32 [T_i * hop].
        Rows are computed as if they had `width` codes at least: calls of many short lengths then compile once.
        Raises UserError: a code out of range, another shape, a length outside 0..T.
        """
        if isinstance(codes, jax.Array):
            codes = np.asarray(codes)
        if not isinstance(codes, np.ndarray) and lengths is None:
            rows = [vq.check_codes(row, self.num_codes, "speech") for row in codes]
            if any(row.ndim != 1 for row in rows):
                raise UserError(f"speech codes must be rows of codes, not {list(rows[0].shape)} each")
            lengths = [len(row) for row in rows]
            codes = np.zeros((len(rows), max(lengths, default=0)), np.int32)
            for padded, row in zip(codes, rows, strict=True):
                padded[: len(row)] = row
        codes_bt = vq.check_codes(codes, self.num_codes, "speech")
        if codes_bt.ndim != 2:
            raise UserError(f"speech codes must be [rows, tokens], not {list(codes_bt.shape)}")
        tokens_b = self._lengths(lengths, codes_bt, "codes")
        waves = self._run(_decode, codes_bt, tokens_b, 1, width)
        waves = [wave[: tokens * self.hop] for wave, tokens in zip(waves, tokens_b, strict=True)]
        return waves if lengths is not None else np.stack(waves) if waves else np.zeros((0, 0), np.float32)

    def stream(self, **sizes: int) -> SpeechStream:
        """A new utterance, decoded while its codes come in; `sizes` as `streaming.SpeechStream` has them."""
        return SpeechStream(self, **sizes)

    def _lengths(self, lengths: Sequence[int] | None, data_bn: np.ndarray, what: str) -> np.ndarray:
        rows, size = data_bn.shape
        lengths_b = np.full(rows, size) if lengths is None else np.asarray(lengths)
        if lengths_b.size and lengths_b.dtype.kind not in "iu":
            raise UserError(f"speech lengths must be whole numbers, not {lengths_b.dtype}")
        smallest = 1 if what == "samples" else 0
        if lengths_b.shape != (rows,) or (rows and not smallest <= lengths_b.min() <= lengths_b.max() <= size):
            raise UserError(
                f"speech lengths {lengths_b.tolist()} do not fit {rows} rows of {size} {what} (each {smallest}..{size})"
            )
        return lengths_b

    def _run(
        self, function: Callable[..., jax.Array], data_bn: np.ndarray, lengths_b: np.ndarray, per_token: int, least: int
    ) -> list[np.ndarray]:
        """Runs a jitted function on batches padded to a few sizes, longest rows together -> one padded array per row.

        Args:
          per_token: columns of `data_bn` that make a token. least: tokens of the smallest size.
        """
        devices = 1
        if self.batch_sharding is not None:
            size = self.batch_sharding.mesh.size
            devices = size // self.batch_sharding.shard_shape((size,))[0]
        results = [np.empty(0)] * len(data_bn)
        waiting = np.argsort(-lengths_b, kind="stable")
        tokens = [-(-int(length) // per_token) for length in lengths_b[waiting]]
        widths = [least if count <= least else _width(count) for count in tokens]
        for count in _split(widths, devices):
            (rows, waiting), width = np.split(waiting, [count]), widths[len(data_bn) - len(waiting)]
            padded = np.zeros((bucket(-(-count // devices)) * devices, width * per_token), data_bn.dtype)
            known = data_bn[rows, : padded.shape[1]]
            padded[: len(rows), : known.shape[1]] = known
            counts = np.zeros(len(padded), np.int32)
            counts[: len(rows)] = lengths_b[rows]
            output = np.asarray(function(self.params, padded, counts, self.network, self.batch_sharding))
            for row, values in zip(rows, output[: len(rows)], strict=True):
                results[row] = values
        return results


def _width(tokens: int) -> int:
    """The next width of a call: steps of 16 tokens up to 256, from there on of an eighth of a power of two.

    Few compilations, and no more than an eighth of padding from 128 tokens on.
    """
    step = max(_STEP, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def _split(widths: Sequence[int], devices: int) -> list[int]:
    """How many of the rows, longest first, go into each call, so that all calls together take the least time.

    A call's time is that of its tokens, padding included, and of its length: steps that follow each other take their
    time even for one row. Hence neither one call per row nor short rows beside one long one.
    """
    tokens = min(_TOKENS_PER_CALL, _TOKENS_ON_CPU) if jax.default_backend() == "cpu" else _TOKENS_PER_CALL
    least, counts = [0] * (len(widths) + 1), [0] * len(widths)
    for first in reversed(range(len(widths))):
        most = max(1, min(_LARGEST_BATCH, tokens // widths[first])) * devices
        times = {
            count: widths[first] * (bucket(-(-count // devices)) + _ROWS_OF_A_STEP) + least[first + count]
            for count in range(min(most, len(widths) - first), 0, -1)
        }
        counts[first] = min(times, key=times.__getitem__)
        least[first] = times[counts[first]]
    calls, first = [], 0
    while first < len(widths):
        calls.append(counts[first])
        first += counts[first]
    return calls


def _read(path_or_name: str | os.PathLike, dtype: str, bandwidth_id: int) -> tuple[Network, vq.Params, str]:
    """Network, parameters and fingerprint, by what lies in the folder."""
    folder = store.locate(path_or_name, "speech")
    published = wavtokenizer_files.locate(Path(path_or_name)) if folder is None else None
    if published is not None:
        config, params = wavtokenizer_files.read(published)
        values = dataclasses.asdict(config)
        network: Network = WavTokenizer.create(values, dtype=dtype, bandwidth_id=bandwidth_id)
        # As if it had been saved by us: the same weights have one fingerprint, whichever file they come from.
        return network, params, store.fingerprint(values, store.sha256(store.pack_params(params, network.stored)))
    folder = store.find(path_or_name, "speech", ", or the yaml file and weights of a WavTokenizer")
    card = store.read_card(folder, "speech")
    kind = NETWORKS.get(card.get("architecture", SmallSpeech.architecture))
    if kind is None:
        raise UserError(f"{folder / store.CARD}: unknown architecture {card['architecture']}; update aromni_jax")
    try:
        network = kind.create(card["config"], dtype=dtype, bandwidth_id=bandwidth_id)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / store.CARD}: {error}; fetch the codec again") from error
    params = store.read_params(folder, card)
    network.check(params, folder)
    return network, params, store.fingerprint(card["config"], card["sha256"])
