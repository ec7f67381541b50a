"""The programs of the engine lowered with the arguments that `aromni compile` gives them; CPUs stand in for chips."""

import json
import sys
import types

import jax
import pytest

from aromni_jax.cli.main import main
from aromni_jax.compile import Shape, Target, compile_decoding, markdown
from aromni_jax.compile.chips import Chip
from aromni_jax.compile.decoding import _compiled
from aromni_jax.config import MeshConfig, ModelConfig
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.compact(text_pieces=75, image_codes=6, image_tokens=3, speech_codes=7)
CONFIG = ModelConfig(vocab_size=V.size, dim=32, layers=3, heads=4, kv_heads=2, head_dim=8, ffn_dim=48)
MESH = MeshConfig(fsdp=2, tensor=2, replica=2)


def on_cpus(memory):
    return Target("cpu:2x4", Chip(memory, 1e9, 1e9), jax.devices())


def test_both_programs_of_the_engine():
    shape = Shape(batch=8, length=64, prompt=16, steps=4, cache_dtype="int8")
    row = compile_decoding(on_cpus(1e9), CONFIG, V, MESH, shape)
    layers, rows, heads = 3, 8 // 4, 2 // 2
    assert row["floor"]["cache"] == 2 * layers * rows * heads * 64 * (8 + 4)
    prefill, decode = row["prefill"], row["decode"]
    assert prefill["fits"] and decode["fits"]
    assert decode["arguments"] > row["floor"]["cache"] + row["floor"]["weights"]
    # The cache and the rest of the carry are given back in place: only the tokens come out anew.
    assert decode["outputs"] <= 3 * 4 * 8 * 4 + 512
    assert decode["over_floor"] > 1 and decode["of_it_between_chunks"] < decode["bytes_per_step"]
    text = markdown([row])
    assert "| cpu:2x4, replica=2 fsdp=2 tensor=2 | 8, 64, int8 | 4 steps |" in text and "| yes |" in text
    small = compile_decoding(on_cpus(1e4), CONFIG, V, MESH, shape)
    assert not small["prefill"]["fits"] and "| no |" in markdown([small])
    json.dumps(row)


def test_a_program_that_the_compiler_refuses():
    row = {
        "topology": "v5e:2x4", "flags": [], "mesh": {"tensor": 8}, "batch": 8, "length": 9, "prompt": 5,
        "cache_dtype": "int8", "prefill": {"fits": False, "needed_gib": 17.5},
    }  # fmt: skip
    assert "| v5e:2x4, tensor=8 | 8, 9, int8 | prefill of 5 | | | | 17.50 | no |" in markdown([row])


@pytest.mark.parametrize(
    ("words", "gib"),
    [
        ("the total memory required for HLO temporaries (34.52G) exceeds available HBM (15.75G).", 34.52),
        ("Ran out of memory in memory space hbm. Used 17.10G of 15.75G hbm. Exceeded", 17.1),
        ("no figure", None),
    ],
)
def test_what_the_compiler_says_of_a_program_that_does_not_fit(words, gib):
    def refuse(compiler_options):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {words}")

    figures, program = _compiled(types.SimpleNamespace(compile=refuse), on_cpus(1e9), trips=1)
    assert figures == {"fits": False, "needed_gib": gib} and program is None


def test_what_the_engine_refuses_is_refused():
    with pytest.raises(UserError, match="tensor=8 does not divide the model's 2 key/value heads"):
        compile_decoding(on_cpus(1e9), CONFIG, V, MeshConfig(tensor=8, fsdp=1), Shape())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v5e:2x4"], "compiling for TPUs needs libtpu, but no TPU: pip install 'aromni_jax[compile]'"),
        (["--topology", "v99:2x4"], "topology 'v99:2x4': begins with one of v5e, v5p, v6e, as in v5e:2x4"),
        (["--topology", "v5e:2x4", "--model", "gpt"], "no published model 'gpt': use one of chameleon-7b"),
        (
            ["--topology", "v5e:2x4", "--prompt", "99", "--length", "9"],
            "a prompt of 99 tokens does not fit",
        ),
        (["--topology", "v5e:2x4", "--out", "x.md"], "--out x.md: that is the table's name; name the figures"),
        (["--topology", "v5e:2x4", "--out", "/"], "--out /: cannot be written; name another file"),
        (["--topology", "v5e:2x4", "--out", f"{__file__}/x.json"], f"--out {__file__}/x.json: "),
    ],
)
def test_errors_are_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert main(["compile", "--mode", "decode", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"aromni: {message}")


@pytest.mark.slow
def test_a_real_topology(tmp_path, capsys):
    pytest.importorskip("libtpu")
    words = ["--layers", "2", "--topology", "v5e:2x4", "--cache-dtype", "int8", "--out", str(tmp_path / "out.json")]
    assert main(["compile", "--mode", "decode", *words]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert "--xla_enable_async_all_gather=true" in row["flags"]
    assert row["chips"] == 8 and row["mesh"]["tensor"] == 8 and row["decode"]["fits"]
    assert row["decode"]["bytes_per_step"] > 0 and row["decode"]["step_ms_by_compiler"] > 0
    assert "| v5e:2x4, tensor=8 | 8, 2048, int8 | 32 steps |" in capsys.readouterr().out
    assert main(["compile", "--mode", "decode", "--topology", "v5e:7x5"]) == 1
