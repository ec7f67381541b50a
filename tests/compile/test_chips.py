"""The compiler's flags: those of the launch scripts, but for the user's own."""

import sys
import types

import jax
import pytest

from aromni_jax.compile import Target, chips, target
from aromni_jax.compile.chips import CHIPS, Chip, launch_flags, topologies
from aromni_jax.compile.report import flags_note
from aromni_jax.errors import UserError

VMEM = "--xla_tpu_scoped_vmem_limit_kib"


@pytest.fixture
def pretended(monkeypatch):
    """A libtpu that knows every topology."""
    monkeypatch.setitem(sys.modules, "libtpu", types.SimpleNamespace(get_library_path=lambda: ""))
    monkeypatch.setattr(topologies, "get_topology_desc", lambda name, platform: types.SimpleNamespace(devices=[]))
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    return monkeypatch


@pytest.mark.parametrize("generation", CHIPS)
def test_a_generation_is_compiled_with_its_own_flags(pretended, generation):
    made = target(f"{generation}:2x4", launched=True)
    assert list(made.flags) == launch_flags(generation) == [f"--{name}={value}" for name, value in made.options.items()]
    assert made.flags and (made.options.get(VMEM[2:]) == "98304") == (generation == "v6e")
    assert target(f"{generation}:2x4", launched=False).flags == ()


def test_the_users_own_flags_win(pretended):
    own = (f"{VMEM}=1024", "--xla_own=1")
    pretended.setenv("LIBTPU_INIT_ARGS", " ".join(own))
    made = target("v6e:2x4", launched=True)
    assert made.flags == (*launch_flags("v6e")[:2], *own)
    assert VMEM[2:] not in made.options and len(made.options) == 2
    assert target("v6e:2x4", launched=False).flags == own


def test_the_users_own_flag_may_have_one_dash(pretended):
    pretended.setenv("LIBTPU_INIT_ARGS", f"{VMEM[1:]}=1024")
    assert VMEM[2:] not in target("v6e:2x4", launched=True).options


def test_lines_are_read_as_the_launch_scripts_read_them(monkeypatch, tmp_path):
    text = "  # a line like this\n \n\nv5e\nv5e --a=1\n v4,v5e\t--b=2 why\nv5ex,v6e --c=3 not this\nv5e --d=4 w\xf6rd"
    (tmp_path / "flags.txt").write_text(text, encoding="latin-1")
    monkeypatch.setattr(chips, "FLAGS", tmp_path / "flags.txt")
    assert launch_flags("v5e") == ["--a=1", "--b=2", "--d=4"]


def test_a_flag_that_the_compiler_does_not_know():
    chip = Chip(1e9, 1e9, 1e9)
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    assert Target("cpu", chip, [], {"xla_cpu_enable_fast_math": "True"}).compile(lowered)(1.0) == 2
    for options, words in ({"xla_no_such": "1"}, "option: 'xla_no_such'"), ({"xla_cpu_enable_fast_math": "?"}, "'?'"):
        with pytest.raises(UserError, match=rf"compile/tpu_flags.txt: the compiler says: .*{words}.*; mend or remove"):
            Target("cpu", chip, [], options).compile(lowered)


def test_the_report_names_them():
    flagged = [{"topology": name, "flags": ["--a=1", "--b=2"]} for name in ("v5e:2x4", "v5e:4x4", "v5e:2x4")]
    note = flags_note([*flagged, {"topology": "v5p:2x2x1", "flags": []}])
    assert note == "Compiler flags for v5e:2x4, v5e:4x4: --a=1 --b=2.\nCompiler flags for v5p:2x2x1: none."
