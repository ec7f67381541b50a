"""What caches in bfloat16 and int8 change in the answers of the shipped model, with bounds; and the table."""

import int8_cache
import numpy as np
import pytest

from aromni_jax.convert import load_model
from aromni_jax.decoding import Engine
from aromni_jax.tasks import Assistant
from aromni_jax.worlds import load_world


def test_errors_of_the_shipped_model_are_small_and_grow_with_the_rounding():
    model = load_model("numbers")
    requests = int8_cache.prompts(Assistant.load("numbers"), load_world("numbers"), "image_caption", 4)
    exact, ours = ([r.tokens for r in Engine(model, cache_dtype=dtype).generate(requests)] for dtype in (None, "int8"))
    figures = int8_cache.along(model, requests, exact)
    eight, sixteen = figures["int8"], figures["bfloat16"]
    assert 0 < sixteen["logit_error_rms"] < eight["logit_error_rms"] < 0.02 * eight["logits_rms"]
    assert eight["logit_error_max"] < 0.3 and 0 <= eight["kl_max"] < 0.01
    assert eight["same_best_token"] > 0.9 and int8_cache.agreement(ours, exact)["same_tokens"] > 0.9
    assert int8_cache.bytes_per_token(model.config) == {"float32": 3072, "bfloat16": 1536, "int8": 864}


def test_agreement_counts_places():
    a, b = np.array([1, 2, 3]), np.array([1, 5, 3, 4])
    assert int8_cache.agreement([a, a], [b, a]) == {"same_tokens": pytest.approx(5 / 7), "same_answers": 0.5}


def test_the_table():
    figures = dict.fromkeys(
        ("answers", "positions", "logit_error_max", "logit_error_rms", "logits_rms", "kl_mean", "kl_max"), 2
    )
    row = {**figures, "same_best_token": 1.0, "same_tokens": 0.5, "same_answers": 0.25}
    result = {
        "model": "x", "items": 2, "tasks": {"text_to_image": {"int8": row}}, "head_dim": 32, "date": "now",
        "bytes_per_token": {"int8": 9}, "hardware": {"processor": "p", "threads": 1}, "versions": {},
    }  # fmt: skip
    text = int8_cache.markdown(result)
    assert "| text_to_image (2, 2) | int8 | 2.000 | 2.0000 (2.00) |" in text and "50.00% | 25.0% |" in text
    assert "int8 9 (heads of 32" in text
