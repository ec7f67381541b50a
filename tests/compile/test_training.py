"""The training step lowered with the arguments that `aromni compile` gives it; CPUs stand in for chips."""

import dataclasses
import json
import sys

import jax
import pytest

from aromni_jax.cli.main import main
from aromni_jax.compile import Target, Trial, compile_training, search, training_markdown
from aromni_jax.compile.chips import Chip
from aromni_jax.compile.training import attention_flops, fsdp_minimum, policy_flops
from aromni_jax.config import LoraConfig, MeshConfig, ModelConfig
from aromni_jax.errors import UserError
from aromni_jax.model import flops_per_token, parameter_counts
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.compact(text_pieces=75, image_codes=6, image_tokens=3, speech_codes=7)
CONFIG = ModelConfig(
    vocab_size=V.size, dim=32, layers=3, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, perceptual_dim=4, logits_tile=40
)


def on_cpus(memory=1e9):
    return Target("cpu:2x4", Chip(memory, 1e9, 1e9, 1e12, 1e9), jax.devices())


def test_a_step():
    row = compile_training(on_cpus(), CONFIG, V, Trial(2, "full", MeshConfig()), length=16)
    assert row["fits"] and row["mesh"]["fsdp"] == 8 and row["rows"] == 2
    # Three float32 copies of a chip's eighth of the parameters, and of what is not split.
    assert 3 * 4 * parameter_counts(CONFIG)["total"] / 8 < row["arguments"] < 3 * 4 * parameter_counts(CONFIG)["total"]
    assert row["outputs"] < 1000  # metrics: the state is given back in place
    kinds = row["collectives"]
    assert kinds["all-gather"] > 0 and kinds["reduce-scatter"] > kinds["all-reduce"]
    assert row["collective_bytes"] == pytest.approx(sum(kinds.values()))
    text = training_markdown([row])
    assert "| cpu:2x4, fsdp=8 | 2 x 16, full |" in text and "| yes |" in text
    json.dumps(row)
    assert not compile_training(on_cpus(1e4), CONFIG, V, Trial(2, "full", MeshConfig()), length=16)["fits"]
    adapted = dataclasses.replace(CONFIG, lora=LoraConfig(rank=1))
    lora = compile_training(on_cpus(), adapted, V, Trial(2, "full", MeshConfig()), length=16)
    assert lora["arguments"] < 0.6 * row["arguments"]  # one copy of what is not trained
    counts = parameter_counts(adapted)
    passes = 2 * counts["total"] - counts["embedder"] + counts["adapters"] + counts["perceptual"]
    assert lora["fsdp_minimum"] == 4 * passes * 7 / 8 and lora["flops"]["model"] < row["flops"]["model"]
    assert ", full, LoRA 1 |" in training_markdown([lora])


def test_a_program_that_the_compiler_refuses():
    row = {"topology": "v5e:16x16", "flags": [], "mesh": {"fsdp": 256}, "rows": 9, "length": 5, "remat": "dots"}
    row |= {"fits": False}
    assert "| v5e:16x16, fsdp=256 | 9 x 5, dots | | | | 17.50 | no |" in training_markdown([row | {"needed_gib": 17.5}])


def test_what_a_policy_computes_again():
    forward = flops_per_token(CONFIG, 16, training=False)
    counts = parameter_counts(CONFIG)
    assert policy_flops(dataclasses.replace(CONFIG, remat="full"), 16) == 4 * forward
    whole = dataclasses.replace(CONFIG, logits_tile=0)
    assert policy_flops(whole, 16) == 3 * forward
    assert policy_flops(CONFIG, 16) == 3 * forward + 2 * counts["head"]
    attention = 2 * 2 * 3 * 4 * 8 * 17 / 2  # two products of 3 layers, 4 heads of 8, 8.5 keys
    assert policy_flops(dataclasses.replace(whole, remat="dots"), 16) == pytest.approx(3 * forward + attention)
    kept = counts["attention"] * (1 + 2 * CONFIG.kv_heads / CONFIG.heads) / (2 + 2 * CONFIG.kv_heads / CONFIG.heads)
    qkv = 4 * forward - 2 * counts["head"] - 2 * kept
    assert policy_flops(dataclasses.replace(whole, remat="qkv"), 16) == pytest.approx(qkv)
    products = 2 * (4 * (counts["attention"] + counts["ffn"]) + 3 * counts["head"])
    full = dataclasses.replace(whole, remat="full")
    assert policy_flops(full, 16) - attention_flops(full, 16) == products


def test_the_least_that_is_sent():
    counts = parameter_counts(CONFIG)
    assert fsdp_minimum(CONFIG, 8) == 4 * (3 * counts["total"] - counts["embedder"]) * 7 / 8
    assert fsdp_minimum(CONFIG, 1) == 0


def speeds(fits, stop_at=None):
    """`compiled` of `search`: rows per second; nothing fits beyond `fits` rows."""

    def compiled(trial):
        if trial.rows == stop_at:
            raise KeyboardInterrupt
        return {"fits": trial.rows <= fits, "rows": trial.rows, "remat": trial.remat, "tokens_per_second": trial.rows}

    return compiled


def test_a_search_ranks_what_fits_and_leaves_out_what_cannot():
    said = []
    rows = search(on_cpus(), [4, 1, 2, 8], ["full"], [MeshConfig()], speeds(2), said.append)
    assert [row["rows"] for row in rows] == [2, 1, 4]
    assert said[0] == "cpu:2x4: 1 of 4 tried, about 0 min left"


def test_a_search_that_is_interrupted_keeps_what_it_has():
    said = []
    rows = search(on_cpus(), [1, 2, 4], ["full", "dots"], [MeshConfig()], speeds(9, stop_at=4), said.append)
    assert [row["rows"] for row in rows] == [2, 1] and said[-1] == "cpu:2x4: stopped, 2 of 6 compiled"


def test_rows_longer_than_the_model_knows_positions():
    with pytest.raises(UserError, match="rows of 9999 tokens are longer than the 4096 positions of the model"):
        compile_training(on_cpus(), CONFIG, V, Trial(1, "full", MeshConfig()), length=9999)


def test_rows_that_a_mesh_cannot_split():
    with pytest.raises(UserError, match="rows of 17 tokens cannot be split over 4 chips along context"):
        compile_training(on_cpus(), CONFIG, V, Trial(1, "full", MeshConfig(context=4)), length=17)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "compiling for TPUs needs libtpu, but no TPU: pip install 'aromni_jax[compile]'"),
        (["--mesh", "fsdp=two"], "--mesh 'fsdp=two': write axis=size,... with axes context, fsdp, replica, tensor"),
        (["--mesh", "expert=2"], "--mesh 'expert=2': write axis=size,..."),
    ],
)
def test_errors_are_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert main(["compile", "--mode", "train", "--topology", "v5e:2x4", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"aromni: {message}")


@pytest.mark.slow
def test_a_real_topology(tmp_path, capsys):
    pytest.importorskip("libtpu")
    words = ["--layers", "2", "--topology", "v5e:8x8", "--length", "1024", "--out", str(tmp_path / "out.json")]
    assert main(["compile", "--mode", "train", *words]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["fits"] and row["flops"]["kernels"] > 0
    assert 1 < row["flops_over_model"] < row["policy_over_model"] * 1.1
    assert row["over_minimum"] < 1.1
    assert "| v5e:8x8, fsdp=64 | 1 x 1024, full |" in capsys.readouterr().out
