"""`aromni convert` and `aromni inspect` on checkpoints, from the command line."""

import json

import numpy as np
import pytest

from aromni_jax.cli.main import main
from aromni_jax.convert import load_model


def test_the_shipped_model_to_hugging_face_and_back(tmp_path, capsys):
    assert main(["convert", "numbers", str(tmp_path / "hf"), "--to", "hf", "--shard-size", "2MB"]) == 0
    out = capsys.readouterr().out
    assert "aromni -> hf, float32" in out and "MB/s" in out
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "back"), "--dtype", "bf16"]) == 0
    assert "hf -> orbax, bf16" in capsys.readouterr().out
    assert load_model(tmp_path / "back").metadata["world"] == "numbers"
    assert main(["inspect", str(tmp_path / "hf")]) == 0
    out = capsys.readouterr().out
    assert "layout: hf (Hugging Face, upstream" in out and "norm order: swin" in out


def test_inspect_with_a_text(tmp_path, capsys):
    words = np.random.default_rng(0).choice(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], 200
    )
    (tmp_path / "text").write_text(" ".join(words))
    assert main(["inspect", "numbers", "--text", str(tmp_path / "text")]) == 0
    out = capsys.readouterr().out
    assert "as the checkpoint says (swin)" in out and "WARNING" not in out


def test_errors_are_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("aromni: ") and error.count("\n") == 1 and "model.safetensors" in error


@pytest.mark.parametrize("size", ["5", "0GB", "five GB", "-1MB"])
def test_a_shard_size_that_is_none(tmp_path, capsys, size):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "a", "b", "--shard-size", size])
    assert stopped.value.code == 2
