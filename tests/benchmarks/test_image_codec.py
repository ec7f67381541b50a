"""The image codec's benchmark: it compares what it says, and stops when the sides differ."""

import dataclasses

import image_codec
import numpy as np
import pytest

from aromni_jax.codecs.vqgan import VQGANConfig
from aromni_jax.errors import UserError

CONFIG = VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=6, resolution=64, n_embed=64, embed_dim=4)


class Same:
    """A peer that is our own codec, off by `error` in its latents and wrong in `wrong` codes."""

    name = "same"

    def __init__(self, codec, error=0.0, wrong=0):
        self._ours, self._error, self._wrong = image_codec.Ours(codec), error, wrong

    def latents(self, image_bhwc):
        return self._ours.latents(image_bhwc) + self._error

    def codes(self, image_bhwc):
        codes = self._ours.codes(image_bhwc).copy()
        codes.flat[: self._wrong] += 1
        return codes


@pytest.fixture(scope="module")
def images():
    return image_codec.pictures(2, CONFIG.resolution)


@pytest.fixture(scope="module")
def ours(images):
    return image_codec.Ours(image_codec.random_codec(CONFIG, images))


def test_rates_and_table(ours, images):
    check = image_codec.check_agreement(ours, Same(ours.codec), images)
    assert check["equal_codes"] == check["codes"] == 2 * 1024 and check["codes_used"] > 16
    rows = image_codec.measure((ours, Same(ours.codec)), images, [1, 2], 3, lambda line: None)
    assert [(row["what"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (1, 2) for name in ("aromni_jax", "same")
    ]
    for mine, theirs in zip(rows[::2], rows[1::2], strict=True):
        rates = zip(mine["images_per_second"]["values"], theirs["images_per_second"]["values"], strict=True)
        assert mine["ratio"]["values"] == pytest.approx([a / b for a, b in rates])
        assert theirs["ratio"] is None


@pytest.mark.parametrize("fault", [{"error": 0.01}, {"error": np.nan}, {"wrong": 20}])
def test_sides_that_differ_are_not_timed(ours, images, fault):
    with pytest.raises(UserError, match="do not compute the same"):
        image_codec.check_agreement(ours, Same(ours.codec, **fault), images)


def test_the_peer_is_the_same_network(images):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    result = image_codec.run(CONFIG, [1], 1, lambda line: None)
    assert result["check"]["equal_codes"] == result["check"]["codes"] == 1024
    assert 0 < result["bfloat16"]["equal_codes"] < result["bfloat16"]["codes"] == 1024
    assert result["run"]["config"] == dataclasses.asdict(CONFIG)
    table = image_codec.markdown(result)
    assert table.count("\n| ") == 2 and "transformers" in table
