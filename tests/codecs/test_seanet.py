"""Mirrored ends, the recurrence and the cutting of long waves, each against a plain statement of what it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aromni_jax.codecs import seanet
from aromni_jax.codecs.seanet import Encoder, Lstm, reflect_ends


def mirrored(row_nc, left, right, stride):
    """One row by itself: filled up with zeros where it is too short, mirrored, and the filling cut off again."""
    right += -len(row_nc) % stride
    missing = max(0, max(left, right) + 1 - len(row_nc))
    filled = np.pad(row_nc, ((0, missing), (0, 0)))
    whole = np.pad(filled, ((left, right), (0, 0)), mode="reflect")
    return whole[: len(whole) - missing]


@pytest.mark.parametrize(("kernel", "stride"), [(7, 1), (3, 1), (8, 4), (10, 5), (12, 6), (4, 2)])
def test_rows_are_mirrored_at_their_own_ends(kernel, stride):
    right = (kernel - stride) // 2
    left = kernel - stride - right
    lengths = np.arange(1, 25)
    x_bnc = np.random.default_rng(0).normal(size=(len(lengths), 60 // stride * stride, 2)).astype(np.float32)
    found = np.asarray(reflect_ends(jnp.asarray(x_bnc), jnp.asarray(lengths), left, right, stride))
    assert found.shape[1] == x_bnc.shape[1] + left + right
    for row, padded, length in zip(x_bnc, found, lengths, strict=True):
        wanted = mirrored(row[:length], left, right, stride)
        np.testing.assert_array_equal(padded[: len(wanted)], wanted)


def test_a_row_of_one_position_in_an_array_of_one():
    found = reflect_ends(jnp.full((1, 1, 1), 5.0), jnp.asarray([1]), 3, 3, 1)
    assert found[0, :, 0].tolist() == [0, 0, 0, 5, 0, 0, 0]


def test_lstm_step_by_step():
    rng = np.random.default_rng(0)
    layer = Lstm(3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray(rng.normal(size=12), jnp.float32)
    x_tc = rng.normal(size=(5, 3)).astype(np.float32)
    hidden, cell = np.zeros(3), np.zeros(3)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    found = np.asarray(layer(jnp.asarray(x_tc)[None]))[0]
    for x, output in zip(x_tc, found, strict=True):
        gates = x @ np.asarray(layer.inputs[...]) + hidden @ np.asarray(layer.states[...]) + np.asarray(layer.bias[...])
        enter, forget, candidate, leave = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(candidate)
        hidden = sigmoid(leave) * np.tanh(cell)
        np.testing.assert_allclose(output, hidden, atol=1e-6)


def test_lstm_in_bfloat16_takes_equal_time_for_every_step():
    """On CPUs a loop that carries a bfloat16 array of all steps converts all of it at every step."""
    layer, x_btc = Lstm(8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((1, 40, 8), jnp.float32)
    program = jax.jit(lambda x_btc: layer(x_btc)).lower(x_btc).compile().as_text()
    (loop,) = [line for line in program.splitlines() if " while(" in line]
    assert "f32[40,1,8]" in loop and "bf16[40,1,8]" not in loop


@pytest.fixture(scope="module")
def encoder():
    return jax.jit(lambda: Encoder(4, 8, (2, 3), 2, dtype=jnp.float32, rngs=nnx.Rngs(0)))()


WAVE = np.random.default_rng(0).normal(size=(4, 50 * 6)).astype(np.float32)
SAMPLES = np.asarray([300, 200, 97, 1])  # ends within, at the border of, and before chunks


def encoded(encoder):
    return np.asarray(jax.jit(lambda wave_bn, samples_b: encoder(wave_bn, samples_b))(WAVE, SAMPLES))


def test_a_long_wave_in_chunks_gives_the_same_frames(encoder, monkeypatch):
    whole = encoded(encoder)
    monkeypatch.setattr(seanet, "_CHUNK", 16)
    for row, other, samples in zip(whole, encoded(encoder), SAMPLES, strict=True):
        frames = -(-samples // 6)
        np.testing.assert_allclose(row[:frames], other[:frames], atol=1e-6)


def test_chunks_need_their_halo(encoder, monkeypatch):
    """Else the equality above would not notice frames that are cut off from their neighbours."""
    whole = encoded(encoder)
    monkeypatch.setattr(seanet, "_CHUNK", 16)
    monkeypatch.setattr(Encoder, "_reach", lambda self: 0)
    assert np.abs(encoded(encoder) - whole)[0].max() > 1e-3


def test_no_frame_hears_further_than_chunks_allow_for(encoder):
    heard = jax.jit(jax.grad(lambda wave_bn: jnp.sum(encoder.frames(wave_bn, SAMPLES)[0, 10])))(WAVE)
    heard = np.flatnonzero(heard[0])
    reach = encoder._reach()
    assert 10 * 6 - reach <= heard.min() < 10 * 6 and 11 * 6 <= heard.max() < 11 * 6 + reach
