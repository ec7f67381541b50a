"""Speech synthesisers for turns that are given as text (SPEC 6.9): one protocol, one table by name.

They speak for the user, so that a model that was trained on spoken turns hears one. None is needed for anything else.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import soxr

from aromni_jax.codecs import read_audio
from aromni_jax.errors import UserError

NONE = "none"


@dataclasses.dataclass(frozen=True)
class Voice:
    """Whose voice to speak with, where the synthesiser can take on any.

    Attributes:
      wav: a recording of it; None = the synthesiser's own.
      text: what is said there; None = the reference's sentence.
    """

    wav: pathlib.Path | None = None
    text: str | None = None


class Synthesiser(Protocol):
    """Speaks a text.

    Attributes:
      takes_voices: whether it can speak with the voice of a recording.
    """

    takes_voices: bool

    def __call__(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
        """float [n], mono, and its rate in hertz; no samples where it finds nothing to say."""
        ...


class Hibari:
    """hibari-tts, a small network in ONNX: one American voice."""

    takes_voices = False

    def __init__(self) -> None:
        try:
            self._speaker = importlib.import_module("hibari").Hibari()
        except ImportError as error:
            raise UserError(
                f"synthesiser hibari: {error}; install it (pip install 'aromni_jax[speak]') or take another one"
            ) from None

    def __call__(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
        return self._speaker(text, seed=0), self._speaker.sample_rate


class Espeak:
    """The program espeak-ng, if it is on PATH: a formant voice."""

    takes_voices = False
    rate = 22_050

    def __init__(self) -> None:
        program = shutil.which("espeak-ng")
        if program is None:
            raise UserError("synthesiser espeak: there is no espeak-ng on PATH; install it or take another one")
        self._program = program

    def __call__(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "speech.wav"
            command = [self._program, "-w", str(file), "--stdin"]
            done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
            if done.returncode or not file.is_file():
                said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
                raise UserError(f"synthesiser espeak: {said}")
            return read_audio(file, self.rate), self.rate


class CosyVoice2:
    """The reference's synthesiser, from a folder of its model; its code must be importable (PYTHONPATH).

    It speaks with the voice of a recording: the turn's, or the reference's own (`voice_file`, in the working folder).
    """

    takes_voices = True
    voice_file = pathlib.Path("inference/ref.wav")
    voice_text = "Ask her to bring these things with her from the store."

    def __init__(self, folder: str) -> None:
        if not pathlib.Path(folder).is_dir():
            raise UserError(f"synthesiser cosyvoice2: {folder} is no folder; give that of the model, cosyvoice2:FOLDER")
        try:
            self._model = importlib.import_module("cosyvoice.cli.cosyvoice").CosyVoice2(folder)
            self._read: Callable[[str, int], Any] = importlib.import_module("cosyvoice.utils.file_utils").load_wav
        except ImportError as error:
            raise UserError(
                f"synthesiser cosyvoice2: {error}; install CosyVoice's requirements and put its checkout, and the "
                "third_party/Matcha-TTS in it, on PYTHONPATH"
            ) from None
        # Since 2025-12-08 it reads the recording itself.
        self._reads_files = "prompt_wav" in inspect.signature(self._model.inference_zero_shot).parameters

    def __call__(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
        wav = voice.wav or self.voice_file
        if not wav.is_file():
            raise UserError(
                f"synthesiser cosyvoice2: there is no recording {wav} whose voice it could take on; name one in "
                "speaker_wav, and what is said there in prompt_text"
            )
        prompt = str(wav) if self._reads_files else self._read(str(wav), 16_000)
        pieces = self._model.inference_zero_shot(text, voice.text or self.voice_text, prompt, stream=False)
        waves = [np.asarray(piece["tts_speech"].cpu(), np.float32).reshape(-1) for piece in pieces]
        return np.concatenate([np.zeros(0, np.float32), *waves]), int(self._model.sample_rate)


SYNTHESISERS: dict[str, Callable[..., Synthesiser]] = {
    "hibari": Hibari,
    "espeak": Espeak,
    "cosyvoice2": CosyVoice2,
}
CHOICES = f"{NONE}, hibari, espeak or cosyvoice2:FOLDER"


def load_synthesiser(choice: str) -> Synthesiser | None:
    """One of `CHOICES`; None for "none". `UserError`: unknown, not installed, a folder missing or of no use."""
    name, colon, folder = choice.partition(":")
    if choice == NONE:
        return None
    if name not in SYNTHESISERS or bool(colon) != bool(inspect.signature(SYNTHESISERS[name]).parameters):
        raise UserError(f"no synthesiser {choice!r}; choose {CHOICES}")
    return SYNTHESISERS[name](folder) if colon else SYNTHESISERS[name]()


def synthesise(synthesiser: Synthesiser, text: str, voice: Voice, sample_rate: int) -> np.ndarray:
    """A text -> float32 [n] in [-1, 1], mono, at `sample_rate` hertz; `UserError` if nothing comes of it."""
    try:
        wave_n, rate = synthesiser(text, voice)
    except UserError:
        raise
    except Exception as error:  # foreign code: one text it stumbles over must not end the others
        raise UserError(f"the synthesiser failed on {text[:60]!r}: {type(error).__name__}: {error}") from error
    wave_n = np.clip(np.asarray(wave_n, np.float32), -1, 1)
    if rate != sample_rate and len(wave_n):
        wave_n = soxr.resample(wave_n, rate, sample_rate, quality="HQ")
    if not len(wave_n):
        raise UserError(f"the synthesiser finds nothing to say in {text[:60]!r}; write it in words it knows")
    if not np.isfinite(wave_n).all():
        raise UserError(f"the synthesiser gave NaN or infinite samples for {text[:60]!r}")
    return np.ascontiguousarray(wave_n, np.float32)
