"""How a picture becomes what a network sees: to the last bit as in the reference (golden set G5), and bad pictures."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from vqgan_golden import FOLDER, TINY, arrays, pictures, random_params

from aromni_jax.codecs import ImageCodec, media, read_image
from aromni_jax.codecs.vqgan import VQGANConfig
from aromni_jax.errors import UserError

PNGS = sorted((FOLDER / "png").glob("*.png"))
EXPECTED = arrays("preprocess")


@pytest.fixture(scope="module")
def codec():
    """64 pixels, as the stored arrays; its weights are not looked at."""
    config = VQGANConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=4, resolution=64, n_embed=4, embed_dim=4)
    return ImageCodec(config, {}, "x")


@pytest.mark.parametrize("path", PNGS, ids=lambda path: path.stem)
def test_same_arrays_as_the_reference(codec, path):
    expected = EXPECTED[path.stem].astype(np.float64) / 255 * 2 - 1
    for form in (read_image(path), Image.open(path)):
        prepared = codec.prepare(form)
        assert prepared.dtype == np.float32
        np.testing.assert_array_equal(prepared[0], expected.astype(np.float32))


def test_all_stored_pictures_are_there():
    assert {path.stem for path in PNGS} == {name for name in EXPECTED if "/" not in name} and len(PNGS) == 12


def test_floats_of_the_reference(codec):
    prepared = codec.prepare(read_image(FOLDER / "png" / "rgba_gradient.png"))
    np.testing.assert_array_equal(prepared[0], np.moveaxis(EXPECTED["rgba_gradient/float"], 0, -1))


def test_hidden_colours_of_transparent_pixels_do_not_show(codec):
    """What AR-Omni's programs do by accident: they drop the alpha channel (SPEC 7.3)."""
    path = FOLDER / "png" / "rgba_gradient.png"
    dropped = codec.prepare(Image.open(path).convert("RGB"))
    assert np.abs(dropped - codec.prepare(read_image(path))).max() > 0.5


def test_hugging_face_s_constant(codec):
    image = read_image(FOLDER / "png" / "rgb_landscape.png")
    theirs = dataclasses.replace(codec, hf_rescale=True).prepare(image)
    byte = EXPECTED["rgb_landscape"].astype(np.float64)
    np.testing.assert_allclose(theirs[0], byte * 0.0078 - 1, atol=1e-7)
    assert 0.005 < np.abs(theirs - codec.prepare(image)).max() < 0.012


def test_the_options_change_the_fingerprint():
    plain, theirs = ImageCodec.load("numbers"), ImageCodec.load("numbers", hf_rescale=True)
    assert plain.fingerprint != theirs.fingerprint
    assert theirs.prepare(np.full((1, 28, 56), 255, np.uint8)).max() == pytest.approx(255 * 0.0078 - 1)


def test_forms_of_a_picture_give_the_same_codes():
    codec = ImageCodec(TINY, random_params(TINY), "tiny")
    images = pictures(3, TINY)
    codes = codec.encode(images)
    for form in ([Image.fromarray(image) for image in images], images / 127.5 - 1):
        np.testing.assert_array_equal(codec.encode(form), codes)
    np.testing.assert_array_equal(codec.encode(Image.fromarray(images[0])), codes[:1])


def test_grey_networks_see_grey():
    config = VQGANConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, resolution=16, in_channels=1, n_embed=8, embed_dim=4
    )
    codec = ImageCodec(config, random_params(config), "grey")
    assert codec.prepare(Image.new("RGB", (40, 30), "red")).shape == (1, 16, 16, 1)
    assert codec.to_pil(np.zeros((1, 64), np.int32))[0].mode == "L"


def test_a_truncated_picture_given_unread(codec, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes((FOLDER / "png" / "rgb_landscape.png").read_bytes()[:20_000])
    with pytest.raises(UserError, match="cannot read"):
        codec.prepare(Image.open(path))


def test_any_complaint_of_the_reader_is_one_line(codec, monkeypatch):
    """A damaged TIFF has made PIL raise this."""

    def load(image):
        raise TypeError("'bytes' object cannot be interpreted as an integer\nat line 3")

    image = Image.open(FOLDER / "png" / "gray.png")
    monkeypatch.setattr(type(image), "load", load)
    with pytest.raises(UserError, match=r"cannot read given as a picture \('bytes' object .* integer\)"):
        codec.prepare(image)


@pytest.mark.parametrize("size", [(9000, 9000), (0, 5), (1, 20_000)])
def test_pictures_of_unreasonable_sizes(codec, size):
    """The last one would have 82 million pixels once it is 64 pixels wide."""
    with pytest.raises(UserError, match="pixels"):
        codec.prepare(Image.new("1", size))


def test_blending_in_parts_is_blending(monkeypatch):
    image = Image.open(FOLDER / "png" / "rgba_gradient.png")
    whole = np.asarray(media.to_rgb(image))
    monkeypatch.setattr(media, "_BLENDED_AT_ONCE", 1000)
    np.testing.assert_array_equal(np.asarray(media.to_rgb(image)), whole)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_are_one_line_or_a_picture(codec, tmp_path, seed):
    """A file of an attacker's making ends in an error of ours, or is a picture after all."""
    rng = np.random.default_rng(seed)
    source = Image.open(FOLDER / "png" / "exif_rotated.png")
    path = tmp_path / ("a.jpg" if seed % 2 else "a.png")
    source.save(path, exif=source.getexif())
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, min(len(data), 400), 6):
        data[place] = rng.integers(256)
    path.write_bytes(bytes(data))
    try:
        assert codec.prepare(read_image(path)).shape == (1, 64, 64, 3)
    except UserError as error:
        assert "\n" not in str(error)
