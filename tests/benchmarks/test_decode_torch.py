"""The benchmark of decoding: the same tokens on both sides, and what its figures are made of."""

import dataclasses
import types

import decode_torch
import numpy as np
import pytest

from aromni_jax.errors import UserError

pytest.importorskip("torch")
pytest.importorskip("transformers")
CONFIG = dataclasses.replace(
    decode_torch.MODELS["small"], vocab_size=1500, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48
)


@pytest.fixture(scope="module")
def model():
    return decode_torch.random_model(CONFIG)


@pytest.mark.parametrize("order", ["pre", "swin"])
def test_transformers_has_our_weights(order):
    model = decode_torch.random_model(dataclasses.replace(CONFIG, norm_order=order))
    row = decode_torch.beside_transformers(model, batch=2, prompt=9, tokens=8, repeats=1)
    assert row["same_tokens"] == 1 and row["ratio"]["values"]


def test_other_weights_are_not_timed(model, monkeypatch):
    class Other:
        def __init__(self, *_):
            pass

        def generate(self, prompts, tokens):
            return [[7] * tokens for _ in prompts]

    monkeypatch.setitem(__import__("sys").modules, "chameleon_torch", types.SimpleNamespace(Transformers=Other))
    with pytest.raises(UserError, match="tokens differ from those of transformers"):
        decode_torch.beside_transformers(model, batch=1, prompt=4, tokens=4, repeats=1)


def test_least_bytes_of_a_step():
    d, f, v, width = 32, 48, 1500, 4
    layer = d * 4 * 8 * 2 + 2 * d * 2 * 8 + 3 * d * f + 2 * d + (4 + 2) * 8 * 2
    cache = 2 * CONFIG.layers * 2 * 8 * width
    expected = width * (CONFIG.layers * layer + d + d * v) + 3 * 100 * cache
    assert decode_torch.step_bytes(CONFIG, batch=3, context=100) == expected


def test_table_names_the_machine_and_a_busy_one():
    spread = {"median": 2.0, "min": 1.0, "max": 3.0}
    peer = {"batch": 1, "prompt": 4, "tokens": 4, "floor": 4.0, "ratio": spread}
    peer |= dict.fromkeys(("ours", "peer", "ours_first", "peer_first"), spread)
    over = {"rows": 6, "engine_ms": spread, "bare_ms": spread, "share": spread}
    part = {"config": dataclasses.asdict(CONFIG), "peer": [peer], "overhead": over}
    result = {
        "models": {"small": part}, "repeats": 3, "date": "today", "versions": {"jax": "1"}, "cpu_share_of_others": 0.5,
        "hardware": {"device": "TPU v9", "processor": "x", "threads": 2, "bytes_per_second": 1e9},
    }  # fmt: skip
    text = decode_torch.markdown(result)
    assert "50% of 4" in text and "TPU v9" in text and "not to be quoted" in text and np.char.count(text, "\n| ") >= 5
