"""The encoder of WavTokenizer: strided convolutions from samples to frames, then an LSTM (SPEC 8.1).

Shapes: b batch, n samples or positions at the rate of a layer, t frames, c channels, g the gates of an LSTM (4 c).
Every row has a length of its own, and every layer sees the signal reflected at *that* end, so a row gives the same
frames in any batch. Source: SEANet, Tagliasacchi et al. 2020, in the form of EnCodec, Défossez et al. 2022.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

_KERNEL = 7  # of the first and the last convolution
# Frames of a long wave in memory at once. CPUs run what is inside a loop with one thread: shorter waves take none.
_CHUNK = 1024


def precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """Of products: float32 means float32 on accelerators too, or codes would depend on the machine."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def in_chunks(
    function: Callable[[jax.Array, jax.Array | int], jax.Array], x_btc: jax.Array, chunk: int, halo: int
) -> jax.Array:
    """`function(x_btc, 0)` with the memory of one chunk, however many frames there are; the same values.

    Args:
      function: frames [b, n, c] and the number of the first of them -> [b, n, ...]; what it says of a frame depends on
        `halo` frames to each side and no more.
      chunk: frames at a time, at least `halo`.
    """
    total = x_btc.shape[1]
    if total <= chunk:
        return function(x_btc, 0)
    count, size = -(-total // chunk), chunk + 2 * halo
    x_btc = jnp.pad(x_btc, ((0, 0), (0, count * chunk + halo - total), (0, 0)))

    def part(index: jax.Array) -> jax.Array:
        start = jnp.maximum(index * chunk - halo, 0)
        out_btc = function(jax.lax.dynamic_slice_in_dim(x_btc, start, size, axis=1), start)
        return jax.lax.dynamic_slice_in_dim(out_btc, index * chunk - start, chunk, axis=1)

    out_pbtc = jax.lax.map(part, jnp.arange(count))
    return out_pbtc.swapaxes(0, 1).reshape(x_btc.shape[0], count * chunk, -1)[:, :total]


class ReflectConv(nnx.Module):
    """Convolution over rows that are reflected at both of their ends: [b, n, inputs] -> [b, n / stride, outputs].

    A row of length l has ceil(l / stride) outputs; an odd padding has its greater half on the left. What stands behind
    a row's end is not read, and anything may stand behind it in the output. n is a multiple of the stride.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs, outputs, (kernel,), strides=stride, padding="VALID", dtype=dtype, precision=precision(dtype),
            rngs=rngs,
        )  # fmt: skip
        self.stride = stride
        self.right = (kernel - stride) // 2
        self.left = kernel - stride - self.right

    def __call__(self, x_bnc: jax.Array, length_b: jax.Array) -> jax.Array:
        if self.left:
            x_bnc = reflect_ends(x_bnc, length_b, self.left, self.right, self.stride)
        return self.conv(x_bnc)


def reflect_ends(x_bnc: jax.Array, length_b: jax.Array, left: int, right: int, stride: int) -> jax.Array:
    """Rows mirrored at both ends, the right one where the *row* ends -> [b, n + left + right, c].

    Before a row stand `left` mirrored positions, behind it `right` and as many more as fill its last stride. A row too
    short to be mirrored that far is filled up with zeros first, only as far as needed, for both ends.
    """
    width = x_bnc.shape[1]
    tail = right + stride - 1  # the most that a row gets on the right
    lead = max(left, tail)
    inside_bn1 = (jnp.arange(width)[None] < length_b[:, None])[..., None]
    # Room for the tail of a row that is as long as the array, or that has to be filled up beyond it.
    room = max(width, left + 1, tail + 1) + tail - width
    x_bnc = jnp.pad(jnp.where(inside_bn1, x_bnc, 0), ((0, 0), (0, room), (0, 0)))
    x_bnc = jnp.concatenate([x_bnc[:, 1 : lead + 1][:, ::-1], x_bnc], axis=1)
    edge_b = lead + jnp.maximum(length_b, jnp.maximum(left, right + -length_b % stride) + 1)

    def mirror(x_nc: jax.Array, edge: jax.Array) -> jax.Array:
        before_edge = jax.lax.dynamic_slice_in_dim(x_nc, edge - 1 - tail, tail)
        return jax.lax.dynamic_update_slice_in_dim(x_nc, before_edge[::-1], edge, 0)

    return jax.vmap(mirror)(x_bnc, edge_b)[:, lead - left : lead + width + right]


class ResidualUnit(nnx.Module):
    """shortcut(x) + two convolutions behind ELUs; the shortcut is a convolution too."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        conv = functools.partial(ReflectConv, dtype=dtype, rngs=rngs)
        self.shortcut = conv(channels, channels, 1)
        self.narrow = conv(channels, channels // 2, 3)
        self.widen = conv(channels // 2, channels, 1)

    def __call__(self, x_bnc: jax.Array, length_b: jax.Array) -> jax.Array:
        hidden = jax.nn.elu(self.narrow(jax.nn.elu(x_bnc), length_b))
        return self.shortcut(x_bnc, length_b) + self.widen(hidden, length_b)


class Stage(nnx.Module):
    """A residual unit, then `stride` positions become one with twice the channels."""

    def __init__(self, channels: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.unit = ResidualUnit(channels, dtype=dtype, rngs=rngs)
        self.down = ReflectConv(channels, 2 * channels, 2 * stride, stride=stride, dtype=dtype, rngs=rngs)

    def __call__(self, x_bnc: jax.Array, length_b: jax.Array) -> jax.Array:
        return self.down(jax.nn.elu(self.unit(x_bnc, length_b)), length_b)


class Lstm(nnx.Module):
    """One layer from left to right, zero at the start: what lies behind a row's end cannot change it.

    Gates stand in the order input, forget, cell, output, as in PyTorch.
    """

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        start = nnx.initializers.lecun_normal()
        self.inputs = nnx.Param(start(rngs.params(), (channels, 4 * channels)))
        self.states = nnx.Param(start(rngs.params(), (channels, 4 * channels)))
        self.bias = nnx.Param(jnp.zeros(4 * channels))
        self.dtype = dtype

    def __call__(self, x_btc: jax.Array) -> jax.Array:
        product = functools.partial(jnp.matmul, precision=precision(self.dtype), preferred_element_type=jnp.float32)
        states_cg = self.states[...].astype(self.dtype)
        gates_tbg = product(x_btc.swapaxes(0, 1).astype(self.dtype), self.inputs[...].astype(self.dtype))
        gates_tbg = gates_tbg + self.bias[...][None, None]

        def step(
            carry: tuple[jax.Array, jax.Array], gates_bg: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            hidden_bc, cell_bc = carry
            gates_bg = gates_bg + product(hidden_bc, states_cg)
            enter, forget, candidate, leave = jnp.split(gates_bg, 4, axis=-1)
            cell_bc = jax.nn.sigmoid(forget) * cell_bc + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            hidden_bc = jax.nn.sigmoid(leave) * jnp.tanh(cell_bc)
            return (hidden_bc.astype(self.dtype), cell_bc), hidden_bc

        # What is kept of every step is float32: CPUs have no bfloat16 to write into, and XLA would convert the whole
        # array, all steps of it, at every step.
        zeros = jnp.zeros((x_btc.shape[0], x_btc.shape[2]))
        hidden_tbc = jax.lax.scan(step, (zeros.astype(self.dtype), zeros), gates_tbg)[1]
        return hidden_tbc.astype(self.dtype).swapaxes(0, 1)


class Encoder(nnx.Module):
    """Samples -> one vector per `prod(strides)` samples.

    Args:
      channels: of the first layer; they double with every stride.
      out: width of the vectors.
      strides: in the order of the layers.
      lstm_layers: with a sum around all of them.
    """

    def __init__(
        self, channels: int, out: int, strides: tuple[int, ...], lstm_layers: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        wide = channels * 2 ** len(strides)
        self.first = ReflectConv(1, channels, _KERNEL, dtype=dtype, rngs=rngs)
        self.stages = nnx.List(
            [Stage(channels * 2**i, stride, dtype=dtype, rngs=rngs) for i, stride in enumerate(strides)]
        )
        self.lstm = nnx.List([Lstm(wide, dtype=dtype, rngs=rngs) for _ in range(lstm_layers)])
        self.last = ReflectConv(wide, out, _KERNEL, dtype=dtype, rngs=rngs)
        self.strides = strides

    def __call__(self, wave_bn: jax.Array, samples_b: jax.Array) -> jax.Array:
        """float32 [b, t * hop] -> float32 [b, t, out]; what stands behind a row's samples is not heard."""
        frames_btc = self._frames_in_chunks(wave_bn, samples_b)
        x_btc = frames_btc
        for layer in self.lstm:
            x_btc = layer(x_btc)
        frames_b = -(-samples_b // math.prod(self.strides))
        return self.last(jax.nn.elu(x_btc + frames_btc), frames_b).astype(jnp.float32)

    def frames(self, wave_bn: jax.Array, samples_b: jax.Array) -> jax.Array:
        """The convolutions before the LSTM: [b, t * hop] -> [b, t, channels * 2**len(strides)]."""
        x_bnc = self.first(wave_bn[..., None], samples_b)
        for stage, stride in zip(self.stages, self.strides, strict=True):
            x_bnc = stage(x_bnc, samples_b)
            samples_b = -(-samples_b // stride)
        return x_bnc

    def _frames_in_chunks(self, wave_bn: jax.Array, samples_b: jax.Array) -> jax.Array:
        """`frames` with the memory of one chunk, however long the wave; the same values.

        A frame depends on no more than `halo` frames of samples to each side. Chunks begin at whole frames, so that
        all strides fall as they do in the whole wave.
        """
        hop = math.prod(self.strides)

        def frames(piece_bth: jax.Array, start: jax.Array | int) -> jax.Array:
            piece_bn = piece_bth.reshape(piece_bth.shape[0], -1)
            return self.frames(piece_bn, jnp.clip(samples_b - start * hop, 0, piece_bn.shape[1]))

        return in_chunks(frames, wave_bn.reshape(wave_bn.shape[0], -1, hop), _CHUNK, -(-self._reach() // hop))

    def _reach(self) -> int:
        """Samples that a frame can depend on beyond its own, all layers together: an upper bound for either side."""
        reach, step = _KERNEL - 1, 1
        for stride in self.strides:
            reach += (2 + 2 * stride - 1) * step
            step *= stride
        return reach
