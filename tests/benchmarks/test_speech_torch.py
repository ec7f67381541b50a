"""The speech codec's comparison with PyTorch: the peer is the same network, and sides that differ are not timed."""

import numpy as np
import pytest
import speech_torch

from aromni_jax.codecs.wavtokenizer import WavTokenizerConfig
from aromni_jax.errors import UserError

pytest.importorskip("torch")
pytest.importorskip("transformers")
CONFIG = WavTokenizerConfig(channels=2, strides=(2, 5), embed=8, codes=64, dim=32, hidden=48, blocks=2, window=40)
SINGLE, BATCH = 0.0101, (0.003, 0.0211)  # seconds; 243, 72 and 506 samples of hop 10


@pytest.fixture(scope="module")
def sides():
    return speech_torch.random_sides(CONFIG)


@pytest.fixture(scope="module")
def result(sides):
    return speech_torch.run(*sides, [SINGLE], BATCH, 2, lambda line: None)


def test_the_peer_is_the_same_network(result):
    check = result["check"]
    assert check["equal_codes"] == check["codes"] == 25 + 8 and check["codes_used"] > 8
    assert check["vector_difference"] < 1e-4 and check["wave_difference"] < 1e-4


def test_rates_and_table(result):
    cases = [("encode", "one of 0.0101 s"), ("decode", "one of 0.0101 s")]
    cases += [("encode", "2 of 0.003 to 0.0211 s"), ("decode", "2 of 0.003 to 0.0211 s")] * 2
    assert [row["peer_name"] for row in result["rows"]] == ["PyTorch"] * 4 + ["PyTorch, padded"] * 2
    assert result["check"]["codes_changed_by_padding"] > 0
    assert [(row["what"], row["case"]) for row in result["rows"]] == cases
    for row in result["rows"]:
        pairs = zip(row["ours"]["values"], row["peer"]["values"], strict=True)
        assert row["ratio"]["values"] == pytest.approx([a / b for a, b in pairs])
    text = speech_torch.markdown(result)
    assert text.count("\n| ") == 6 and "33 of 33 codes equal" in text


@pytest.mark.parametrize("part", ["vectors", "encode", "decode"])
def test_sides_that_differ_are_not_timed(sides, monkeypatch, part):
    ours, peer, _ = sides
    inner = getattr(peer, part)
    wrong = {"vectors": lambda x: inner(x) * np.nan, "encode": lambda x: [1 - row % 2 for row in inner(x)]}
    wrong["decode"] = lambda x: [1.01 * wave for wave in inner(x)]
    monkeypatch.setattr(peer, part, wrong[part])
    with pytest.raises(UserError, match="do not compute the same"):
        speech_torch.check_agreement(ours, peer, [speech_torch.noise(SINGLE, CONFIG)])
