"""The published names of WavTokenizer's weights beside ours: one table, which loading and its checks read.

Linear weights are [out, in] there and [in, out] here, convolutions [out, in, width] there and [width, in, out] here.
Weight norm is folded (w = g v / |v|), the two biases of an LSTM are added: both once, at loading (SPEC 8.4).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aromni_jax.codecs import folder as store
from aromni_jax.codecs import vq
from aromni_jax.codecs.tensor_files import Tensors
from aromni_jax.codecs.wavtokenizer import LSTM_LAYERS, WavTokenizerConfig
from aromni_jax.errors import UserError

_ENCODER = "feature_extractor.encodec.encoder.model."
_WINDOW = "head.istft.window"
_CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook."
# Everything under these must be known; the rest of a checkpoint (discriminators, the unused decoder of EnCodec) is not
# looked at.
_WHOLE = (_ENCODER, "feature_extractor.encodec.quantizer.", "backbone.", "head.")

# What the two halves of a weight norm are called in files that a newer PyTorch has saved.
_NEWER_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
_WINDOW_TOLERANCE = 3e-4  # rounding to float16 is less, the window that is not periodic is twice as far

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """Where one of our arrays comes from.

    Attributes:
      path: slash-joined, in our parameters; None for what is in the file and not needed.
      sources: published names and shapes.
      join: the published arrays, in that order -> ours.
    """

    path: str | None
    sources: Mapping[str, Shape]
    join: Callable[..., np.ndarray]


def table(config: WavTokenizerConfig) -> list[Row]:
    """One row per array of ours, and those for what is not needed."""
    c = config
    unneeded = {
        f"{_CODEBOOK}inited": (1,),
        f"{_CODEBOOK}cluster_size": (c.codes,),
        f"{_CODEBOOK}embed_avg": (c.codes, c.embed),
        _WINDOW: (c.window,),
    }
    return [
        *_encoder(c),
        Row("codebook", {f"{_CODEBOOK}embed": (c.codes, c.embed)}, _as_is),
        *_decoder(c),
        *(Row(None, {name: shape}, _as_is) for name, shape in unneeded.items()),
    ]


def _encoder(c: WavTokenizerConfig) -> list[Row]:
    wide, index = c.channels * 2 ** len(c.strides), 1 + 3 * len(c.strides)
    rows = _normed_conv("first", 0, 1, c.channels, 7)
    for stage, stride in enumerate(c.strides):
        width, place = c.channels * 2**stage, 1 + 3 * stage
        rows += _normed_conv(f"stages/{stage}/unit/shortcut", f"{place}.shortcut", width, width, 1)
        rows += _normed_conv(f"stages/{stage}/unit/narrow", f"{place}.block.1", width, width // 2, 3)
        rows += _normed_conv(f"stages/{stage}/unit/widen", f"{place}.block.3", width // 2, width, 1)
        rows += _normed_conv(f"stages/{stage}/down", place + 2, width, 2 * width, 2 * stride)
    for layer in range(LSTM_LAYERS):
        ours, theirs = f"net/encoder/lstm/{layer}", f"{_ENCODER}{index}.lstm."
        matrix, vector = (4 * wide, wide), (4 * wide,)
        rows += [
            Row(f"{ours}/inputs", {f"{theirs}weight_ih_l{layer}": matrix}, np.transpose),
            Row(f"{ours}/states", {f"{theirs}weight_hh_l{layer}": matrix}, np.transpose),
            Row(f"{ours}/bias", {f"{theirs}bias_{half}_l{layer}": vector for half in ("ih", "hh")}, np.add),
        ]
    return rows + _normed_conv("last", index + 2, wide, c.embed, 7)


def _decoder(c: WavTokenizerConfig) -> list[Row]:
    d = c.dim
    rows = _conv("embed/conv", "backbone.embed", c.embed, d, 7)
    for index in (0, 1, 3, 4):
        ours, theirs = f"mix/{index}", f"backbone.pos_net.{index}"
        for half in (1, 2):
            rows += _norm(f"{ours}/norm{half}", f"{theirs}.norm{half}", d)
            rows += _conv(f"{ours}/conv{half}/conv", f"{theirs}.conv{half}", d, d, 3)
    rows += _norm("mix/2/norm", "backbone.pos_net.2.norm", d)
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj_out")):
        rows += _linear(f"mix/2/{ours}", f"backbone.pos_net.2.{theirs}", d, d, pointwise=True)
    rows += _norm("mix_norm", "backbone.pos_net.5", d)
    rows += _adaptive("norm", "backbone.norm", c)
    for index in range(c.blocks):
        ours, theirs = f"blocks/{index}", f"backbone.convnext.{index}"
        rows += _conv(f"{ours}/depthwise/conv", f"{theirs}.dwconv", 1, d, 7)
        rows += _adaptive(f"{ours}/norm", f"{theirs}.norm", c)
        rows += _linear(f"{ours}/widen", f"{theirs}.pwconv1", d, c.hidden)
        rows += _linear(f"{ours}/narrow", f"{theirs}.pwconv2", c.hidden, d)
        rows.append(Row(f"net/decoder/{ours}/gamma", {f"{theirs}.gamma": (d,)}, _as_is))
    rows += _norm("final_norm", "backbone.final_layer_norm", d)
    return rows + _linear("out", "head.out", d, c.window + 2)


def _normed_conv(ours: str, place: str | int, inputs: int, outputs: int, width: int) -> list[Row]:
    theirs = f"{_ENCODER}{place}.conv.conv."
    weights = {f"{theirs}weight_g": (outputs, 1, 1), f"{theirs}weight_v": (outputs, inputs, width)}
    return [
        Row(f"net/encoder/{ours}/conv/kernel", weights, _folded),
        Row(f"net/encoder/{ours}/conv/bias", {f"{theirs}bias": (outputs,)}, _as_is),
    ]


def _conv(ours: str, theirs: str, inputs: int, outputs: int, width: int) -> list[Row]:
    return [
        Row(f"net/decoder/{ours}/kernel", {f"{theirs}.weight": (outputs, inputs, width)}, np.transpose),
        Row(f"net/decoder/{ours}/bias", {f"{theirs}.bias": (outputs,)}, _as_is),
    ]


def _linear(ours: str, theirs: str, inputs: int, outputs: int, *, pointwise: bool = False) -> list[Row]:
    """`pointwise`: a convolution of width 1 there."""
    shape = (outputs, inputs, 1) if pointwise else (outputs, inputs)
    return [
        Row(f"net/decoder/{ours}/kernel", {f"{theirs}.weight": shape}, _pointwise if pointwise else np.transpose),
        Row(f"net/decoder/{ours}/bias", {f"{theirs}.bias": (outputs,)}, _as_is),
    ]


def _norm(ours: str, theirs: str, channels: int) -> list[Row]:
    return [
        Row(f"net/decoder/{ours}/scale", {f"{theirs}.weight": (channels,)}, _as_is),
        Row(f"net/decoder/{ours}/bias", {f"{theirs}.bias": (channels,)}, _as_is),
    ]


def _adaptive(ours: str, theirs: str, c: WavTokenizerConfig) -> list[Row]:
    shape = (c.conditions, c.dim)
    return [
        Row(f"net/decoder/{ours}/{name}", {f"{theirs}.{name}.weight": shape}, _as_is) for name in ("scale", "shift")
    ]


def _as_is(x: np.ndarray) -> np.ndarray:
    return x


def _pointwise(weight_oi1: np.ndarray) -> np.ndarray:
    return weight_oi1[..., 0].T


def _folded(scale_o11: np.ndarray, direction_oiw: np.ndarray) -> np.ndarray:
    direction_oiw = direction_oiw.astype(np.float64)
    norm_o11 = np.sqrt(np.square(direction_oiw).sum(axis=(1, 2), keepdims=True))
    return (scale_o11 * direction_oiw / norm_o11).T


def import_params(tensors: Tensors, config: WavTokenizerConfig) -> vq.Params:
    """Published arrays -> {"net": nested dict, "codebook": [k, e]}, float32.

    Raises:
      UserError: a weight is missing, unknown, of another shape, or not finite; or the window is not Hann's.
    """
    rows, tensors = table(config), _with_published_names(tensors)
    _check(tensors, rows)
    flat: dict[str, np.ndarray] = {}
    for row in rows:
        if row.path:
            flat[row.path] = np.asarray(row.join(*map(tensors.read, row.sources)), np.float32)
            if not np.isfinite(flat[row.path]).all():
                raise UserError(f"{tensors.where}: {' or '.join(row.sources)} holds NaN or infinite values")
    if _WINDOW in tensors.shapes:
        difference = np.abs(tensors.read(_WINDOW) - np.hanning(config.window + 1)[:-1])
        if not difference.max() < _WINDOW_TOLERANCE:
            raise UserError(f"{tensors.where}: {_WINDOW} is not a periodic Hann window; no other is supported")
    return store.nest(flat)


def _with_published_names(tensors: Tensors) -> Tensors:
    """The same arrays, the halves of weight norms under the names that the published checkpoint has for them."""
    found = {name: name for name in tensors.shapes}
    for newer, published in _NEWER_NAMES.items():
        found = {name.replace(newer, published): there for name, there in found.items()}
    shapes = {name: tensors.shapes[there] for name, there in found.items()}
    return Tensors(tensors.where, shapes, lambda name: tensors.read(found[name]))


def _check(tensors: Tensors, rows: Sequence[Row]) -> None:
    """UserError that names the first weight that is missing, unknown or of another shape."""
    wanted = {name: shape for row in rows for name, shape in row.sources.items()}
    missing = [name for row in rows if row.path for name in row.sources if name not in tensors.shapes]
    unknown = sorted(name for name in tensors.shapes if name.startswith(_WHOLE) and name not in wanted)
    for problem, names in (("missing", missing), ("not in the network", unknown)):
        if names:
            more = f" (and {len(names) - 1} more)" if names[1:] else ""
            raise UserError(
                f"{tensors.where} does not fit its config: {names[0]} is {problem}{more}; take the config that "
                "belongs to the weights"
            )
    for name, shape in wanted.items():
        if tensors.shapes.get(name, shape) != shape:
            raise UserError(
                f"{tensors.where} does not fit its config: {name} is {list(tensors.shapes[name])} in place of "
                f"{list(shape)}; take the config that belongs to the weights"
            )
