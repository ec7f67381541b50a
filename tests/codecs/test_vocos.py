"""Masked norms and attention: rows as if alone; the spectra's way back against the vector of the specification."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aromni_jax.codecs import spectrum, vocos
from aromni_jax.codecs.vocos import AttentionBlock, Decoder, MaskedGroupNorm


def masks(lengths, frames):
    return (np.arange(frames) < np.asarray(lengths)[:, None])[..., None].astype(np.float32)


def test_group_norm_of_the_frames_that_exist():
    x_btc = np.random.default_rng(0).normal(3, 2, size=(2, 9, 64)).astype(np.float32)
    found = np.asarray(MaskedGroupNorm(64)(jnp.asarray(x_btc), jnp.asarray(masks([9, 5], 9))))
    for row, normed, length in zip(x_btc, found, [9, 5], strict=True):
        groups = row[:length].reshape(length, 32, 2)
        wanted = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-6)
        np.testing.assert_allclose(normed[:length], wanted.reshape(length, 64), atol=1e-5)


def test_attention_over_the_frames_that_exist_in_blocks_too(monkeypatch):
    block = AttentionBlock(64, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x_btc = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 64)), jnp.float32)
    mask = jnp.asarray(masks([40, 23], 40))
    whole = np.asarray(block(x_btc, mask))
    np.testing.assert_allclose(whole[1:, :23], block(x_btc[1:, :23], mask[1:, :23]), atol=1e-5)
    monkeypatch.setattr(vocos, "_QUERIES", 16)
    np.testing.assert_allclose(np.asarray(block(x_btc, mask)), whole, atol=1e-5)


@pytest.fixture(scope="module")
def decoder():
    return jax.jit(lambda: Decoder(8, 64, 96, 2, 3, hop=4, window=16, dtype=jnp.float32, rngs=nnx.Rngs(0)))()


def test_nothing_behind_the_end_is_heard(decoder):
    x_btc = jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 8)), jnp.float32)
    frames_b = jnp.asarray([7])

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def loudness(x_btc):
        wave_bn = decoder(x_btc, frames_b, 0)
        return jnp.sum(jnp.square(wave_bn)), wave_bn

    (gradient, *_), (wave, *_) = loudness(x_btc)
    assert np.abs(gradient[7:]).max() == 0 and (np.abs(gradient[:7]).max(axis=1) > 0).all()
    assert np.abs(wave[7 * 4 :]).max() == 0


def test_conditions_differ(decoder):
    decoder.norm.scale[...] = jnp.asarray(np.random.default_rng(0).normal(size=(3, 64)), jnp.float32)
    x_btc, frames_b = jnp.ones((1, 6, 8)), jnp.asarray([6])
    assert np.abs(jax.jit(lambda: decoder(x_btc, frames_b, 0) - decoder(x_btc, frames_b, 2))()).max() > 1e-3


def decoded(decoder, x_btc, frames_b):
    return np.asarray(jax.jit(lambda x_btc, frames_b: decoder(x_btc, frames_b, 0))(x_btc, frames_b))


def test_a_long_utterance_in_chunks_gives_the_same_samples(decoder, monkeypatch):
    x_btc = np.random.default_rng(0).normal(size=(5, 50, 8)).astype(np.float32)
    frames_b = np.asarray([50, 48, 17, 16, 1])  # ends within, at the border of, and before chunks
    whole = decoded(decoder, x_btc, frames_b)
    monkeypatch.setattr(vocos, "_CHUNK", 16)
    np.testing.assert_allclose(decoded(decoder, x_btc, frames_b), whole, atol=1e-5)
    monkeypatch.setattr(Decoder, "reach", lambda self: 5)  # 8 are needed: else the equality would not notice cuts
    assert np.abs(decoded(decoder, x_btc, frames_b) - whole).max() > 1e-4


def test_inverse_spectra_of_the_specification():
    bins, frames = np.meshgrid(np.arange(5), np.arange(3))
    values = ((bins + 1) + 1j * (frames - bins) / 2).astype(np.complex64)
    found = spectrum.istft(jnp.asarray(values)[None], 2, 8, jnp.ones((1, 3, 1)))
    np.testing.assert_allclose(found[0], [-0.156557, -0.1, -0.283516, 0, -0.343297, 0.1], atol=1e-6)
