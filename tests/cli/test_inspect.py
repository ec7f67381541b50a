"""`aromni inspect` on everything it knows, and on what it does not know."""

import json

import jax
import pytest

from aromni_jax.cli.main import main
from aromni_jax.config import ModelConfig
from aromni_jax.convert import save_model
from aromni_jax.model import init_params
from tests.training import small_run

V = small_run.VOCABULARY


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    return small_run.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    config = ModelConfig(vocab_size=V.size, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn_dim=16)
    folder = tmp_path_factory.mktemp("models") / "small"
    save_model(folder, init_params(config, jax.random.key(0)), config, V, {"world": "numbers"})
    return folder


def inspect(capsys, *words):
    """Exit code, lines of stdout, stderr."""
    code = main(["inspect", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_model(capsys, model_path):
    code, out, _ = inspect(capsys, model_path)
    assert code == 0
    assert "layers/attention/query" in out and "1x16x2x8" in out
    assert f"vocabulary {V.fingerprint()}: {V.size} ids" in out and f"boi {V.boi}" in out
    assert 'world: "numbers"' in out


def test_a_data_set(capsys, data_path):
    code, out, _ = inspect(capsys, data_path)
    assert code == 0
    assert "train/all: 96 examples" in out and "filled" in out and "text_to_image" in out


@pytest.mark.parametrize("kind", ["records", "rows"])
def test_record_and_row_files(capsys, data_path, kind):
    code, out, _ = inspect(capsys, data_path / "test" / f"all.{kind}.array_record", "--limit", 1)
    assert code == 0
    assert "16 examples" in out and "image_caption 4 (25.0%)" in out
    assert "<bos>" in out and "<eoh>" in out


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_token_stream(capsys, model_path, tmp_path, wrapped):
    tokens = [V.bos, V.boi, *range(V.image.start, V.image.start + 4), V.eoi, V.eoh, V.text.start, V.eos]
    file = tmp_path / "stream.json"
    file.write_text(json.dumps({"tokens": tokens} if wrapped else tokens))
    code, out, _ = inspect(capsys, file, "--vocabulary", model_path)
    assert code == 0
    assert "well-formed" in out and "<bos> <boi> image[4: 0 1 2 3] <eoi> <eoh>" in out


def test_a_broken_stream_is_shown_and_said_to_be_broken(capsys, model_path, tmp_path):
    file = tmp_path / "stream.json"
    file.write_text(json.dumps([V.bos, V.boi, V.image.start, V.eos, V.size + 3]))
    code, out, _ = inspect(capsys, file, "--vocabulary", model_path)
    assert code == 1
    assert "not well-formed" in out and f"<{V.size + 3}>" in out


def test_colours_only_in_a_terminal(capsys, model_path, tmp_path, monkeypatch):
    file = tmp_path / "stream.json"
    file.write_text(json.dumps([V.bos, V.image.start]))
    assert "\033[" not in inspect(capsys, file, "--vocabulary", model_path)[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\033[35m" in inspect(capsys, file, "--vocabulary", model_path)[1]


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("none", None, [], "no such file or folder"),
        ("stream.json", "[1, 2", ["--vocabulary", "aromni"], "not valid JSON"),
        ("stream.json", '{"ids": []}', ["--vocabulary", "aromni"], "expected a list of ids"),
        ("stream.json", "[1]", [], "whose ids are these"),
        ("stream.json", "[1" + "0" * 30 + "]", ["--vocabulary", "aromni"], "more than 64 bits"),
        ("x.array_record", "junk", ["--vocabulary", "aromni"], "ArrayRecord"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, name, content, words, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    code, _, err = inspect(capsys, tmp_path / name, *words)
    assert code == 1
    assert message in err and err.count("\n") == 1
