"""The VQGAN against the reference implementation's stored outputs (golden set G5), and its other ways to run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vqgan_golden import TINY, arrays, pictures, random_params, write_golden

from aromni_jax.codecs import ImageCodec, image, vq
from aromni_jax.codecs.vqgan import VQGANConfig
from aromni_jax.errors import UserError

TOLERANCE = 1e-4
CASES = arrays("cases")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_golden(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def codec(folder):
    return ImageCodec.load(folder)


@pytest.fixture(scope="module")
def tiny():
    return ImageCodec(TINY, jax.tree.map(jnp.asarray, random_params(TINY)), "tiny")


def _nhwc(x):
    return np.moveaxis(x, 1, -1)


def _same_codes(codes, case):
    """Equal wherever the reference's choice is clear."""
    clear = CASES[f"margin_{case}"] > TOLERANCE
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(codes.ravel()[clear], CASES[f"ids_{case}"][clear])


def _net(codec):
    return vq.with_params(codec.config.build, codec.params["net"])


def test_square_pictures(codec):
    images = _nhwc(CASES["image_0"])

    @jax.jit
    def run(image_bhwc):
        net = _net(codec)
        return net.encoder(image_bhwc), net.encode(image_bhwc)

    encoded, latent = run(images)
    np.testing.assert_allclose(encoded[:1], _nhwc(CASES["encoder_out_0"]), atol=TOLERANCE)
    np.testing.assert_allclose(latent, _nhwc(CASES["latent_0"]), atol=TOLERANCE)
    codes = codec.encode(images)
    assert codes.shape == (2, codec.tokens_per_image) and codes.dtype == np.int32
    _same_codes(codes, 0)
    expected = np.clip(_nhwc(CASES["reconstruction_0"]), -1, 1)
    np.testing.assert_allclose(codec.decode(codes[:1]), expected, atol=TOLERANCE)


def test_a_picture_that_is_not_square(codec):
    """Rows before columns, and attention over another number of places."""

    @jax.jit
    def run(image_bhwc):
        net = _net(codec)
        latent = net.encode(image_bhwc)
        codes = vq.nearest(codec.params["codebook"], latent)
        return latent, codes, net.decode(codec.params["codebook"][codes])

    latent, codes, decoded = run(_nhwc(CASES["image_1"]))
    np.testing.assert_allclose(latent, _nhwc(CASES["latent_1"]), atol=TOLERANCE)
    _same_codes(np.asarray(codes), 1)
    np.testing.assert_allclose(decoded, _nhwc(CASES["reconstruction_1"]), atol=TOLERANCE)


def test_codes_to_pixels(codec):
    rows, columns = CASES["decode_grid"]
    z = codec.codebook[CASES["decode_ids"]].reshape(2, rows, columns, -1)
    decoded = jax.jit(lambda z: _net(codec).decode(z))(z)
    np.testing.assert_allclose(decoded, _nhwc(CASES["decode_image"]), atol=TOLERANCE)


def test_bytes_of_a_decoded_picture_are_cut_not_rounded(tiny):
    codes = np.arange(2 * tiny.tokens_per_image).reshape(2, -1) % tiny.num_codes
    exact = (tiny.decode(codes) + 1) / 2 * 255
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in tiny.to_pil(codes)]), np.floor(exact))
    assert (np.floor(exact) != np.round(exact)).any()


def test_a_batch_gives_what_each_picture_gives_alone(tiny):
    images = pictures(5, TINY)
    codes = tiny.encode(images)
    assert len(np.unique(codes)) > 4
    for row in (0, 4):
        np.testing.assert_array_equal(tiny.encode(images[row : row + 1])[0], codes[row])
    assert tiny.encode(images[:0]).shape == (0, tiny.tokens_per_image)
    assert tiny.decode(codes[:0]).shape == (0, 16, 16, 3)


def test_few_batch_sizes_are_compiled(tiny):
    before = image._encode._cache_size()
    for count in (9, 10, 11, 12):
        tiny.encode(pictures(count, TINY))
    assert image._encode._cache_size() == before + 1


def test_large_pictures_come_in_small_batches():
    assert VQGANConfig().largest_batch == 8
    assert VQGANConfig(resolution=4096).largest_batch == 1
    assert VQGANConfig(resolution=64).largest_batch == 256


@pytest.mark.parametrize("axes", [None, "data", ("data", "model")])
def test_spread_over_devices(tiny, axes):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    spread = tiny.sharded(mesh, axes)
    share = 2 if axes == "data" else 4
    assert spread.batch_sharding.shard_shape((8, 16, 16, 3)) == (8 // share, 16, 16, 3)
    assert len(spread.params["codebook"].devices()) == 4
    images = pictures(5, TINY)  # not a multiple of the devices, nor is the next batch size that is compiled
    codes = tiny.encode(images)
    np.testing.assert_array_equal(spread.encode(images), codes)
    np.testing.assert_allclose(spread.decode(codes), tiny.decode(codes), atol=1e-5)


def test_spread_over_an_unknown_axis(tiny):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    with pytest.raises(UserError, match="no axis rows"):
        tiny.sharded(mesh, "rows")


def test_bfloat16(folder, codec):
    """Most codes stay; another fingerprint says that not all do."""
    fast = ImageCodec.load(folder, dtype="bfloat16")
    images = _nhwc(CASES["image_0"])
    codes, expected = fast.encode(images), codec.encode(images)
    agreement = (codes == expected).mean()
    assert 0.9 < agreement < 1
    assert fast.fingerprint != codec.fingerprint
    decoded = fast.decode(expected)
    assert decoded.dtype == np.float32
    assert 1e-4 < np.abs(decoded - codec.decode(expected)).max() < 0.1
    with pytest.raises(UserError, match="float32 or bfloat16"):
        ImageCodec.load(folder, dtype="float16")


@pytest.mark.parametrize(("dtype", "in_text"), [("bfloat16", "bf16"), ("float32", "f32")])
def test_all_convolutions_are_of_the_dtype(tiny, dtype, in_text):
    images, codes = np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 64), np.int32)
    for function, rows in ((image._encode, images), (image._decode, codes)):
        text = function.lower(tiny.params, rows, TINY, dtype).as_text()
        convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        assert len(convolutions) > 15
        for line in convolutions:
            types = line.rsplit(" : ", 1)[1]
            assert types.count(f"x{in_text}>") == 3, line


def test_bad_codes(tiny):
    good = np.zeros((1, tiny.tokens_per_image), np.int32)
    for bad in (good[:, :-1], good[0], good + tiny.num_codes, good - 1, good.astype(np.float32)):
        with pytest.raises(UserError):
            tiny.decode(bad)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ch": 40}, "multiple of 32"),
        ({"ch": 0}, "1 or more"),
        ({"ch_mult": ()}, "ch_mult"),
        ({"resolution": 40}, "halve"),
        ({"in_channels": 4}, "in_channels"),
    ],
)
def test_a_config_that_makes_no_network(change, reason):
    with pytest.raises(UserError, match=reason):
        VQGANConfig(**change)
