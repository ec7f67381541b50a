"""The image codec: shapes, ranges, sizes, and what the shipped weights can do."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from aromni_jax.codecs import ImageCodec, folder, vq
from aromni_jax.codecs.measure import held_out_pictures, image_figures
from aromni_jax.codecs.small_image import ImageConfig, ImageNet
from aromni_jax.errors import UserError
from aromni_jax.worlds import load_world
from aromni_jax.worlds.numbers import NumbersWorld

SHIPPED = folder.find("numbers", "image")


@pytest.fixture(scope="module")
def codec():
    return ImageCodec.load("numbers")


@pytest.fixture(scope="module")
def pictures():
    return held_out_pictures(NumbersWorld.load(), 24)


def test_shapes_and_ranges(codec, pictures):
    codes = codec.encode(pictures)
    assert codes.shape == (24, codec.tokens_per_image)
    assert codes.dtype == np.int32
    assert codes.min() >= 0
    assert codes.max() < codec.num_codes
    decoded = codec.decode(codes)
    assert decoded.shape == (24, 28, 56, 1)
    assert decoded.dtype == np.float32
    assert np.abs(decoded).max() <= 1
    assert codec.codebook.shape[0] == codec.num_codes
    assert [image.size for image in codec.to_pil(codes[:2])] == [(56, 28)] * 2


def test_all_forms_of_a_picture_give_the_same_codes(codec, pictures):
    codes = codec.encode(pictures[:3])
    forms = [
        pictures[:3, ..., None],
        pictures[:3].astype(np.float64) / 127.5 - 1,
        jax.numpy.asarray(pictures[:3]),
        [Image.fromarray(picture) for picture in pictures[:3]],
        [Image.fromarray(picture).convert("RGB") for picture in pictures[:3]],
    ]
    for form in forms:
        np.testing.assert_array_equal(codec.encode(form), codes)
    np.testing.assert_array_equal(codec.encode(Image.fromarray(pictures[0])), codes[:1])


def test_a_picture_of_another_size_is_scaled_and_cut(codec, pictures):
    large = Image.fromarray(pictures[0]).resize((560, 280), Image.Resampling.BICUBIC)
    framed = Image.new("L", (560, 400))
    framed.paste(large, (0, 60))
    decoded = codec.decode(codec.encode([framed]))[0, ..., 0]
    assert np.abs(decoded - (pictures[0] / 127.5 - 1)).mean() < 0.2


def test_a_batch_gives_what_each_picture_gives_alone(codec, pictures):
    codes = codec.encode(pictures)
    decoded = codec.decode(codes)
    for row in (0, 7, 23):
        np.testing.assert_array_equal(codec.encode(pictures[row : row + 1])[0], codes[row])
        np.testing.assert_allclose(codec.decode(codes[row : row + 1])[0], decoded[row], atol=1e-4)


def test_more_pictures_than_one_batch_holds(codec, pictures):
    many = np.tile(pictures, (11, 1, 1))
    codes = codec.encode(many)
    np.testing.assert_array_equal(codes, np.tile(codec.encode(pictures), (11, 1)))
    assert codec.decode(codes).shape[0] == len(many)
    assert codec.encode(many[:0]).shape == (0, codec.tokens_per_image)
    assert codec.decode(codes[:0]).shape == (0, 28, 56, 1)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 28, 28), np.uint8),
        np.zeros((28, 56), np.uint8),
        np.zeros((1, 28, 56), np.int32),
        np.full((1, 28, 56), np.nan),
        ["a.png"],
        pathlib.Path("a.png"),
        None,
    ],
)
def test_bad_pictures(codec, images):
    with pytest.raises(UserError):
        codec.encode(images)


def test_bad_codes(codec):
    good = np.zeros((1, codec.tokens_per_image), np.int32)
    for bad in (good[:, :-1], good[0], good + codec.num_codes, good - 1, good.astype(np.float32), [[1], [1, 2]]):
        with pytest.raises(UserError):
            codec.decode(bad)


@pytest.mark.parametrize(("world", "psnr_db", "in_use"), [("numbers", 18.5, 0.7), ("things", 20.5, 0.6)])
def test_shipped_weights_hold_their_figures(world, psnr_db, in_use):
    """The figures in the card are those of the weights beside it, and good enough to recognise."""
    shipped = folder.find(world, "image")
    card, codec = json.loads((shipped / folder.CARD).read_text()), ImageCodec.load(world)
    figures, sheet = image_figures(codec, load_world(world))
    assert figures["psnr_db"] == pytest.approx(card["figures"]["psnr_db"], abs=0.05)
    assert figures["psnr_db"] > psnr_db
    assert figures["perplexity"] > in_use * codec.num_codes
    height, width = codec.config.height, codec.config.width  # four rows of eight pairs, with rims, at twice the size
    assert sheet.shape[:2] == (2 * 4 * (2 * height + 2), 2 * 8 * (width + 2))


def test_the_decoder_uses_its_neighbours(codec, pictures):
    """One code changes pixels beyond its own patch: the decoder has context."""
    codes = codec.encode(pictures[:1])
    changed = codes.copy()
    changed[0, 10] = (changed[0, 10] + 1) % codec.num_codes  # row 1, column 2
    difference = np.abs(codec.decode(codes) - codec.decode(changed))[0, ..., 0]
    difference[7:14, 14:21] = 0
    assert difference.max() > 0.01


def test_same_folder_same_fingerprint(codec, tmp_path):
    assert ImageCodec.load(SHIPPED).fingerprint == codec.fingerprint
    assert ImageCodec.load(SHIPPED.parent).fingerprint == codec.fingerprint
    params = {**codec.params, "codebook": codec.codebook + 1}
    folder.write(tmp_path, "image", vars(codec.config), folder.pack_params(params), {})
    assert ImageCodec.load(tmp_path).fingerprint != codec.fingerprint


def damage(path, kind):
    card = json.loads((path / "codec.json").read_text())
    if kind == "json":
        (path / "codec.json").write_text("{")
    elif kind == "weights":
        (path / card["weights"]).unlink()
    elif kind == "bytes":
        data = bytearray((path / card["weights"]).read_bytes())
        data[-1] ^= 1
        (path / card["weights"]).write_bytes(bytes(data))
    else:
        if kind == "config":
            card["config"]["colour"] = 1
        elif kind == "shape":
            card["config"]["dim"] += 1
        elif kind == "codes":
            card["config"]["codes"] += 1
        elif kind == "kind":
            card["kind"] = "speech"
        elif kind == "name":
            card["weights"] = 3
        (path / "codec.json").write_text(json.dumps(card))


@pytest.mark.parametrize("kind", ["json", "weights", "bytes", "config", "shape", "codes", "kind", "name"])
def test_a_damaged_folder_is_one_line(tmp_path, kind):
    shutil.copytree(SHIPPED, tmp_path / "image")
    damage(tmp_path / "image", kind)
    with pytest.raises(UserError) as caught:
        ImageCodec.load(tmp_path / "image")
    assert "\n" not in str(caught.value)


def test_no_such_codec():
    with pytest.raises(UserError, match="no image codec"):
        ImageCodec.load("letters")


def test_colour_and_other_sizes():
    """Nothing in the code is bound to the numbers world."""
    config = ImageConfig(height=16, width=8, channels=3, patch=4, kernel=6, context=1, dim=8, codes=5, embed=3)
    net = vq.init(lambda rngs: ImageNet(config, rngs=rngs), seed=0)
    params = {"net": net, "codebook": jax.random.normal(jax.random.key(0), (5, 3))}
    codec = ImageCodec(config, params, "x")
    codes = codec.encode(np.random.default_rng(0).integers(0, 256, (2, 16, 8, 3), np.uint8))
    assert codes.shape == (2, 8)
    assert codec.to_pil(codes)[0].mode == "RGB"
