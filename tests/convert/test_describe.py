"""What `inspect` says of a checkpoint, and that a text tells the right norm order from the wrong one."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from aromni_jax.convert import convert, load_model, open_source
from aromni_jax.convert.describe import describe, describe_losses, next_token_losses, text_ids
from aromni_jax.errors import UserError
from aromni_jax.model import forward, logits
from tests.golden_models import FOLDER, VOCABULARY

TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "WordLevel",
        "vocab": {"<unk>": 3, "<s>": 0, "one": 60, "two": 61, "three": 62},
        "unk_token": "<unk>",
    },
}


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FOLDER / "gqa", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return tmp_path / "model"


def test_lines(folder):
    text = "\n".join(describe(open_source(folder, VOCABULARY)))
    assert "layout: hf-reference" in text and "stored: float32 (42 tensors)" in text
    assert "norm order: pre" in text and "kv_heads: 2" in text
    assert "layers/attention/key " in text and "3x64x2x16" in text and "rms" in text
    assert "check: 2 names of tokenizer.json, 20 names of config.json have the ids of SPEC 1 (image id" in text


def test_the_vq_model_is_counted():
    lines = describe(open_source(FOLDER / "mha", VOCABULARY))
    assert any("beside them" in line and "image codec" in line for line in lines)
    assert any("names of config.json have the ids" in line for line in lines)


def test_loss_of_a_text_under_both_orders(folder, tmp_path):
    (tmp_path / "text").write_text("one two three " * 5)
    ids = text_ids(open_source(folder, VOCABULARY), tmp_path / "text")
    assert ids.tolist() == [60, 61, 62] * 5
    model = load_model(folder, VOCABULARY)
    losses = next_token_losses(model, ids)
    row = np.concatenate([[0], ids])[None]
    for order, loss in losses.items():
        config = dataclasses.replace(model.config, norm_order=order)
        scores = jax.nn.log_softmax(logits(model.params, config, forward(model.params, config, row)[0]))[0]
        wanted = -np.mean([scores[place, token] for place, token in enumerate(ids)])
        assert loss == pytest.approx(float(wanted), rel=1e-5)
    assert losses["pre"] != pytest.approx(losses["swin"], rel=1e-3)


def test_a_long_text_is_cut_into_rows(folder, monkeypatch):
    """The mean does not depend on padding: two whole rows and a short one are the sum of three texts."""
    from aromni_jax.convert import describe as module

    monkeypatch.setattr(module, "_ROW", 9)
    model = load_model(folder, VOCABULARY)
    ids = np.random.default_rng(0).integers(46, 640, 19)
    parts = [next_token_losses(model, part)["pre"] * len(part) for part in (ids[:8], ids[8:16], ids[16:])]
    assert next_token_losses(model, ids)["pre"] == pytest.approx(sum(parts) / 19, rel=1e-5)


def test_the_warning_is_only_for_the_worse_order(folder, tmp_path):
    model = load_model(folder, VOCABULARY)
    good = describe_losses(model, {"pre": 1.0, "swin": 9.0}, 64, tmp_path / "t")
    bad = describe_losses(model, {"pre": 9.0, "swin": 1.0}, 64, tmp_path / "t")
    short = describe_losses(model, {"pre": 9.0, "swin": 1.0}, 63, tmp_path / "t")
    assert "note: too short a text" in short[1] and "WARNING" not in "".join(short)
    assert len(good) == 1 and "1.000 as the checkpoint says (pre)" in good[0]
    assert "WARNING: swin reads this text better" in bad[1] and "set swin_norm to true" in bad[1]


def test_a_model_that_was_trained_shows_its_own_order(tmp_path):
    """The checkpoint that comes with the package is swin; exported with the wrong switch, a text gives it away."""
    with open_source("numbers") as source:
        convert(source, tmp_path / "hf", "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"swin_norm": False}))
    words = np.random.default_rng(0).choice(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], 200
    )
    (tmp_path / "text").write_text(" ".join(words))
    source = open_source(tmp_path / "hf")
    model, ids = load_model(tmp_path / "hf"), text_ids(source, tmp_path / "text")
    assert model.config.norm_order == "pre"
    lines = describe_losses(model, next_token_losses(model, ids), len(ids), tmp_path / "text")
    assert "WARNING" in lines[-1]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "holds 0 tokens"), (b"\xff\xfe", "not UTF-8 at byte 0"), (None, "No such file")]
)
def test_a_text_that_is_none(folder, tmp_path, content, message):
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(UserError, match=message):
        text_ids(open_source(folder, VOCABULARY), tmp_path / "text")


def test_without_a_tokenizer(tmp_path):
    (tmp_path / "text").write_text("one")
    with pytest.raises(UserError, match=r"brings no tokenizer\.json, so it cannot read"):
        text_ids(open_source(FOLDER / "gqa", VOCABULARY), tmp_path / "text")


def test_a_tokenizer_that_is_none(folder, tmp_path):
    (tmp_path / "text").write_text("one")
    source = open_source(folder, VOCABULARY)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer of the tokenizers library"):
        text_ids(source, tmp_path / "text")
