"""Speech for texts: the table, its errors, and what is the same for all."""

import shutil
import sys
import types

import numpy as np
import pytest
import soundfile

from aromni_jax.errors import UserError
from aromni_jax.tasks.synthesis import SYNTHESISERS, Voice, load_synthesiser, synthesise


def test_none_is_none():
    assert load_synthesiser("none") is None


@pytest.mark.parametrize("choice", ["sam", "", "hibari:x", "cosyvoice2", "none:"])
def test_unknown_ones(choice):
    with pytest.raises(UserError, match="choose none, hibari, espeak or cosyvoice2:FOLDER"):
        load_synthesiser(choice)


def test_what_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "hibari", None)
    monkeypatch.setitem(sys.modules, "cosyvoice.cli.cosyvoice", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for choice, message in (
        ("hibari", r"pip install 'aromni_jax\[speak\]'"),
        ("espeak", "no espeak-ng on PATH"),
        (f"cosyvoice2:{tmp_path / 'no'}", "is no folder"),
        (f"cosyvoice2:{tmp_path}", "on PYTHONPATH"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_synthesiser(choice)
        assert "\n" not in str(caught.value)


def fake(wave, rate):
    return lambda text, voice: (np.asarray(wave), rate)


def test_resampled_clipped_and_checked():
    wave = synthesise(fake(np.full(480, 2.0), 24_000), "a", Voice(), 16_000)
    assert wave.dtype == np.float32 and len(wave) == 320 and abs(wave).max() < 1.2
    np.testing.assert_array_equal(synthesise(fake([0.5, -3.0], 160), "a", Voice(), 160), np.float32([0.5, -1.0]))
    with pytest.raises(UserError, match="nothing to say in '日本'"):
        synthesise(fake(np.zeros(0), 24_000), "日本", Voice(), 16_000)
    with pytest.raises(UserError, match="NaN or infinite"):
        synthesise(fake([np.nan], 160), "a", Voice(), 160)


def test_one_that_stumbles_is_an_error_of_the_text():
    def speak(text, voice):
        raise IndexError("list index out of range")

    with pytest.raises(UserError, match="failed on 'four two': IndexError: list index out of range"):
        synthesise(speak, "four two", Voice(None, None), 16_000)


def test_hibari(monkeypatch):
    """As the package is called; the real one, where it is installed, in the test below."""

    class Speaker:
        sample_rate = 24_000

        def __call__(self, text, seed):
            return np.full(3, seed + 0.25, np.float32)

    monkeypatch.setitem(sys.modules, "hibari", types.SimpleNamespace(Hibari=Speaker))
    wave, rate = load_synthesiser("hibari")("hi", Voice())
    assert rate == 24_000 and wave.tolist() == [0.25] * 3


@pytest.mark.parametrize("name", ["hibari", "espeak"])
def test_the_real_ones(name):
    if name == "hibari":
        pytest.importorskip("hibari")
    elif not shutil.which("espeak-ng"):
        pytest.skip("no espeak-ng here")
    wave = synthesise(SYNTHESISERS[name](), "four two", Voice(), 16_000)
    assert 0.3 < len(wave) / 16_000 < 3 and 0.05 < abs(wave).max() <= 1


def test_espeak_says_what_is_wrong(monkeypatch, tmp_path):
    program = tmp_path / "espeak-ng"
    program.write_text("#!/bin/sh\necho no voice >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match="synthesiser espeak: no voice"):
        load_synthesiser("espeak")("hi", Voice())


class Tensor:
    def __init__(self, values):
        self.values = values

    def cpu(self):
        return np.float32([self.values])


@pytest.fixture
def cosyvoice(monkeypatch):
    """CosyVoice's modules; `install(new)` makes them as they are since 2025-12-08, or as before."""
    calls = []

    class Model:
        sample_rate = 24_000

        def __init__(self, folder):
            self.folder = folder

    class Old(Model):
        def inference_zero_shot(self, tts_text, prompt_text, prompt_speech_16k, stream=True):
            calls.append((tts_text, prompt_text, prompt_speech_16k, stream))
            yield from ({"tts_speech": Tensor(values)} for values in ([0.1, 0.2], [0.3]))

    class New(Model):
        def inference_zero_shot(self, tts_text, prompt_text, prompt_wav, stream=True):
            calls.append((tts_text, prompt_text, prompt_wav, stream))
            yield {"tts_speech": Tensor([0.5])}

    def install(new):
        module = types.SimpleNamespace(CosyVoice2=New if new else Old)
        monkeypatch.setitem(sys.modules, "cosyvoice.cli.cosyvoice", module)
        files = types.SimpleNamespace(load_wav=lambda path, rate: (path, rate))
        monkeypatch.setitem(sys.modules, "cosyvoice.utils.file_utils", files)
        return calls

    return install


@pytest.mark.parametrize("new", [False, True])
def test_cosyvoice2(cosyvoice, tmp_path, monkeypatch, new):
    monkeypatch.chdir(tmp_path)
    calls = cosyvoice(new)
    speak = load_synthesiser(f"cosyvoice2:{tmp_path}")
    with pytest.raises(UserError, match=r"no recording inference/ref\.wav whose voice"):
        speak("hi", Voice())
    soundfile.write(tmp_path / "v.wav", np.zeros(9), 16_000)
    wave, rate = speak("hi", Voice(tmp_path / "v.wav", "there"))
    assert rate == 24_000
    np.testing.assert_allclose(wave, [0.5] if new else [0.1, 0.2, 0.3])
    prompt = str(tmp_path / "v.wav")
    assert calls == [("hi", "there", prompt if new else (prompt, 16_000), False)]
    (tmp_path / "inference").mkdir()
    (tmp_path / "v.wav").rename(tmp_path / "inference" / "ref.wav")
    speak("ho", Voice())
    assert calls[1][1] == "Ask her to bring these things with her from the store."
