"""A made-up but realistic run folder for the tests of the report; `python fake_run.py FOLDER` makes one to look at."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from aromni_jax.codecs.media import write_png, write_wav
from aromni_jax.decoding.grammar import State
from aromni_jax.evaluation.scores import DIGIT_WORDS
from aromni_jax.vocabulary import JointVocabulary, Modality

VOCABULARY = JointVocabulary.compact(text_pieces=320, image_codes=128, image_tokens=32, speech_codes=256)
_STROKES = {  # a digit in a unit square, as polylines
    "2": [(0.15, 0.25), (0.5, 0.05), (0.8, 0.3), (0.2, 0.9), (0.85, 0.9)],
    "3": [(0.2, 0.1), (0.8, 0.2), (0.4, 0.45), (0.8, 0.7), (0.2, 0.9)],
    "5": [(0.8, 0.1), (0.3, 0.1), (0.25, 0.45), (0.75, 0.6), (0.6, 0.9), (0.2, 0.85)],
    "7": [(0.15, 0.12), (0.85, 0.12), (0.4, 0.92)],
}


def drawing(digits: str) -> np.ndarray:
    """Strokes of two digits, uint8 [28, 56]."""
    image = Image.new("L", (56 * 4, 28 * 4))
    pen = ImageDraw.Draw(image)
    for at, digit in enumerate(digits):
        points = [(4 * (28 * at + 4 + 20 * x), 4 * (4 + 20 * y)) for x, y in _STROKES[digit]]
        pen.line(points, fill=255, width=11, joint="curve")
    return np.asarray(image.resize((56, 28), Image.Resampling.LANCZOS))


def utterance(digits: str, rng: np.random.Generator) -> np.ndarray:
    """A voice-like buzz with two moving formants per digit, float32 [n] at 16 kHz."""
    waves = []
    for digit in digits:
        t = np.arange(int(0.42 * 16_000)) / 16_000
        pitch = 118 + 25 * np.cos(5 * t) + rng.normal(0, 3)
        first, second = 350 + 60 * int(digit) + 300 * t, 1200 + 130 * int(digit) - 700 * t
        wave = np.zeros_like(t)
        for harmonic in range(1, 45):
            place = harmonic * pitch
            gain = np.exp(-(((place - first) / 180) ** 2)) + 0.5 * np.exp(-(((place - second) / 260) ** 2))
            wave += (gain + 0.004) * np.sin(2 * np.pi * np.cumsum(place) / 16_000)
        envelope = np.minimum(1, np.minimum(t / 0.05, (t[-1] - t) / 0.09))
        waves += [wave * envelope, np.zeros(int(16_000 * rng.uniform(0.05, 0.15)))]
    wave = np.concatenate(waves) + rng.normal(0, 0.002, sum(map(len, waves)))
    return (0.6 * wave / np.abs(wave).max()).astype(np.float32)


class _Stream:
    """Collects tokens with what the report wants to know of each."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.tokens: list[int] = []
        self.states: list[int] = []
        self.labels: list[str | None] = []
        self._rng = rng

    def add(self, ids, state=None, labels=None):
        ids = [int(i) for i in ids]
        self.tokens += ids
        self.states += [-1 if state is None else int(state)] * len(ids)
        self.labels += labels or [None] * len(ids)
        return self

    def text(self, content, state=None):
        pieces = ["▁" + word for word in content.split()]
        return self.add(VOCABULARY.text.start + self._rng.integers(0, 320, len(pieces)), state, pieces)

    def speech(self, seconds, outer=None):
        codes = VOCABULARY.speech.start + self._rng.integers(0, 256, round(40 * seconds))
        inner = None if outer is None else State.SPEECH
        return self.add([VOCABULARY.boa], outer).add(codes, inner).add([VOCABULARY.eoa], inner)

    def image(self, outer=None):
        codes = VOCABULARY.image.start + self._rng.integers(0, 128, 32)
        inner = None if outer is None else State.IMAGE
        return self.add([VOCABULARY.boi], outer).add(codes, inner).add([VOCABULARY.eoi], inner)

    def fields(self):
        kinds = VOCABULARY.modality(np.asarray(self.tokens)).tolist()
        return {"tokens": self.tokens, "modalities": kinds, "states": self.states, "labels": self.labels}


def write_fake_run(folder: Path, seed: int = 0) -> Path:
    """Write metrics.json, metrics.jsonl, ablations.json and samples/ into `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = _log(rng)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "metrics.json").write_text(json.dumps(_metrics(), indent=1))
    (folder / "ablations.json").write_text(json.dumps(_ablations(rng)))
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / "samples.json").write_text(json.dumps(_samples(folder / "samples", rng)))
    return folder


def write_fake_training(folder: Path, steps: tuple[int, ...] = (10, 20, 30), seed: int = 0) -> Path:
    """What `aromni train` leaves: a run of 60 steps at step 40, restarted from step 20, with samples of `steps`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    config = {"world": "numbers", "model": {"dim": 160}, "train": {"steps": 60, "sample_every": 10}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = []
    for step in (10, 20, 30, 40):
        values = {"loss": 60 / step, "loss/text": 30 / step, "loss/speech": 40 / step, "loss/task/chat": 50 / step}
        clocks = {"window_seconds": 20.0, "data_wait_seconds": 1.0, "goodput": 0.75, "eval_seconds": 3.0}
        clocks |= {"samples_seconds": 2.0, "useful_tokens_per_second": 900.0, "tokens_per_second": 1000.0}
        more = {"learning_rate": 1e-3, "grad_norm": 1.0, "skipped_steps": 2.0, "mfu_causal_bf16": 0.41}
        lines += [{"kind": "train", "step": step, **values, **clocks, **more}, {"kind": "eval", "step": step, **values}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = {
        "kind": "start", "time": "2026-11-20T10:00:00+00:00", "step": 0, "reached_before": 0, "lost_seconds": 0,
        "seconds": {"prepare": 2.0, "compile": 8.0}, "vocabulary": VOCABULARY.to_dict(),
        "hardware": {"devices": "256 x TPU v5 lite", "mesh": {"fsdp": 256}, "processes": 64},
        "versions": {"aromni_jax": "0.1.0", "jax": "0.10.2"},
        "parameters": {"attention": 410_880, "head": 115_200, "total": 526_080}, "flops_per_token": 3.2e6,
    }  # fmt: skip
    again = {**start, "time": "2026-11-20T11:00:00+00:00", "step": 20, "reached_before": 27, "lost_seconds": 14.0}
    end = {"kind": "end", "step": 20, "stopped_by": "SIGTERM", "seconds": {"checkpoint": 6.0}}
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (start, end, again)))
    for step in steps:
        at = folder / "samples" / f"{step:07d}"
        at.mkdir(parents=True)
        write_png(at / "t2i_out_0.png", drawing("23"))
        write_wav(at / "tts_out_0.wav", utterance("2", rng), 16_000)
        asked, answer = [{"kind": "text", "text": "two three"}], [{"kind": "text", "text": f"three, at {step}"}]
        given = {"input": asked, "wanted": [{"kind": "text", "text": "two three"}]}
        records = [
            {"task": "image_caption", **given, "output": answer},
            {"task": "text_to_image", **given, "output": [{"kind": "image", "file": "t2i_out_0.png"}]},
            {"task": "text_to_speech", **given, "output": [{"kind": "speech", "file": "tts_out_0.wav"}]},
        ]
        (at / "samples.json").write_text(json.dumps(records))
    return folder


def _log(rng):
    starts = {"text": (5.1, 0.32), "image": (4.8, 1.9), "speech": (5.5, 2.7), "marker": (5.0, 0.04)}
    lines = []
    for step in range(10, 3010, 10):
        every_hundred = step % 100 == 0
        for kind in ("train", "eval") if every_hundred else ("train",):
            noise = 0.05 if kind == "train" else 0.01
            line = {"kind": kind, "step": step, "seconds": 0.19 * step}
            for name, (first, last) in starts.items():
                level = last * (1.0 if kind == "train" else 1.08)
                line[f"loss/{name}"] = (level + (first - level) * np.exp(-step / 420)) * np.exp(rng.normal(0, noise))
                line[f"accuracy/{name}"] = 1 - line[f"loss/{name}"] / 6
            line["loss"] = float(np.mean([line[f"loss/{name}"] for name in starts]))
            line["perceptual"] = 0.8 * np.exp(-step / 900) + 0.3
            if kind == "train":
                rate = 16_200 * np.exp(rng.normal(0, 0.03)) if step > 10 else 900
                line |= {"tokens_per_second": rate, "useful_tokens_per_second": 0.97 * rate}
                line |= {"learning_rate": 3e-3 * min(step / 100, 0.5 + 0.5 * np.cos(np.pi * step / 3010))}
                line |= {"grad_norm": 1 + 3 * np.exp(-step / 300)}
            lines.append(line)
    return lines


def _metrics():
    judges = {
        "moonshine-base": {"wer": 0.108, "codec_wer": 0.021, "difference": 0.087},
        "whisper-tiny.en": {"wer": 0.121, "codec_wer": 0.029, "difference": 0.092},
    }
    return {
        "created": "2025-11-20T05:40:00+00:00",
        "vocabulary": VOCABULARY.to_dict(),
        "environment": {"cpu": "AMD EPYC 9B14, 2 cores", "memory_gb": 8.0, "python": "3.11.2", "jax": "0.10.2",
                        "platform": "Linux 6.1 x86_64", "aromni_jax": "0.1.0"},
        "recipe": {"model": {"dim": 160, "layers": 4}, "train": {"steps": 3000, "seed": 0}},
        "model": {"parameters": 1_312_640, "by_group": {"embedding": 115_200, "attention": 410_880,
                  "feed_forward": 665_600, "output_head": 115_200, "norms": 5_760}, "layers": 4, "dim": 160},
        "data": {"examples": 6000, "tokens": 512_344, "strings": {"train": 80, "test": 20},
                 "tokens_by_modality": {"text": 72_100, "image": 168_000, "speech": 214_000, "marker": 58_244},
                 "examples_by_task": {"text_to_speech": 1000, "speech_to_text": 1000, "image_caption": 1000,
                                      "text_to_image": 1000, "speech_to_image": 700, "image_to_speech": 700,
                                      "chat": 600},
                 "packing": {"packed": 0.973, "padded_to_longest": 0.58, "padded_to_max": 0.31,
                             "rows": 1031}},
        "timing": {"install": 64.0, "tokenise": 21.4, "train": 571.0, "evaluate": 83.2, "generate": 6.1, "bound": 900},
        "training": {"steps": 3000, "tokens": 11_050_000, "batch_size": 16, "sequence_length": 512, "skipped_steps": 0},
        "throughput": {"note": "Same model, loss and batch; one after the other on one machine.", "rows": [
            {"framework": "aromni_jax, packed", "tokens_per_second": 16_204, "useful_tokens_per_second": 15_766},
            {"framework": "aromni_jax, padded", "tokens_per_second": 16_433, "useful_tokens_per_second": 9_531},
            {"framework": "PyTorch 2.13.0, packed", "tokens_per_second": 13_882, "useful_tokens_per_second": 13_507},
        ]},
        "held_out": {
            "asr": {"wer": 0.061, "interval": [0.035, 0.092], "items": 200, "bound": 0.15, "passed": True,
                    "exact": 0.9},
            "tts": {"difference": 0.087, "wer": 0.108, "codec_wer": 0.021, "interval": [0.05, 0.131], "items": 100,
                    "bound": 0.2, "passed": True, "per judge": judges},
            "caption": {"exact": 0.71, "interval": [0.64, 0.77], "items": 200, "bound": 0.6, "passed": True},
            "t2i": {"exact": 0.765, "interval": [0.7, 0.82], "per_digit": 0.874, "codec": 0.955, "items": 200,
                    "bound": 0.8, "passed": False, "judge": "k nearest neighbours on the training drawings"},
            "speech_to_image": {"exact": 0.69, "interval": [0.6, 0.78], "items": 100},
            "image_to_speech": {"wer": 0.19, "interval": [0.13, 0.25], "items": 100},
            "chat": {"exact": 0.72, "transcript": 0.93, "items": 60},
            "held_out_voice": {"asr": {"wer": 0.41, "interval": [0.35, 0.47], "items": 100}},
            "held_out_speed": {"asr": {"wer": 0.12, "interval": [0.08, 0.16], "items": 100}},
            "loss_falls": {"text": True, "image": True, "speech": True},
        },
        "decoding": {"first_token_seconds": 0.021, "first_audio_seconds": 0.16, "real_time_factor": 0.21,
                     "tokens_per_second": 913, "by_task": {"asr": 0.09, "tts": 0.31}},
        "surprise": {"deep": {"leaf": 42}, "list": [1, 2, 3]},
    }  # fmt: skip


def _ablations(rng):
    names = ["weighted, no perceptual, swin", "plain, no perceptual, swin", "weighted, perceptual (predict), swin",
             "weighted, perceptual (same position), swin", "weighted, perceptual (predict), pre"]  # fmt: skip
    means = {"loss/text": 0.4, "loss/image": 2.0, "loss/speech": 2.8, "caption_exact": 0.66, "asr_wer": 0.07}
    rows = [
        {
            "name": name,
            "seeds": 3,
            "metrics": {k: [m * rng.uniform(0.9, 1.1), 0.03 * m * rng.uniform(0.5, 2)] for k, m in means.items()},
        }
        for name in names
    ]
    return {"budget": {"steps": 1200, "tokens": 4_400_000, "minutes_per_run": 3.9}, "rows": rows}


def _samples(folder, rng):
    def words(digits):
        return " ".join(DIGIT_WORDS[int(digit)] for digit in digits)

    def text(content):
        return {"kind": "text", "text": content}

    def image(name, digits):
        write_png(folder / f"{name}.png", drawing(digits))
        return {"kind": "image", "file": f"{name}.png"}

    def speech(name, digits):
        wave = utterance(digits, rng)
        write_wav(folder / f"{name}.wav", wave, 16_000)
        return {"kind": "speech", "file": f"{name}.wav", "seconds": len(wave) / 16_000}

    v, free, samples = VOCABULARY, State.TEXT, []
    clocks = {"first_token_seconds": 0.019, "total_seconds": 0.11}

    def record(task, title, given, made, stream, expected, judged):
        samples.append({"task": task, "title": title, "input": given, "output": made, "expected": expected,
                        "judged": judged, "correct": expected == judged, "clocks": clocks,
                        **stream.fields()})  # fmt: skip

    for at, digits in enumerate(("23", "75")):
        said = words(digits)
        heard = said if at == 0 else "seven nine"
        ask = _Stream(rng).add([v.bos])
        out = ask.text(f"say {said}").add([v.eoh]).speech(0.95, free).add([v.eos], free)
        record(
            "tts", f"number {digits}, unseen in training", [text(said)], [speech(f"tts{at}", digits)], out, said, heard
        )
        out = (
            _Stream(rng).add([v.bos]).text("what is said").speech(1.0).add([v.eoh]).text(said, free).add([v.eos], free)
        )
        record("asr", f"number {digits}", [speech(f"asr{at}", digits)], [text(said)], out, said, said)
        out = _Stream(rng).add([v.bos]).text("what is drawn").image().add([v.eoh]).text(said, free).add([v.eos], free)
        record("caption", f"number {digits}", [image(f"caption{at}", digits)], [text(said)], out, said, said)
        out = _Stream(rng).add([v.bos]).text(f"draw {said}").add([v.eoh]).image(free).add([v.eos], free)
        record("t2i", f"number {digits}", [text(said)], [image(f"t2i{at}", digits)], out, said, said)
    out = _Stream(rng).add([v.bos]).text("draw what is said").speech(1.0).add([v.eoh]).image(free).add([v.eos], free)
    record(
        "speech_to_image", "number 37", [speech("s2i", "37")], [image("s2i", "37")], out, "three seven", "three seven"
    )
    out = _Stream(rng).add([v.bos]).text("say what is drawn").image().add([v.eoh]).speech(1.0, free).add([v.eos], free)
    record("image_to_speech", "number 52", [image("i2s", "52")], [speech("i2s", "52")], out, "five two", "five two")
    out = _Stream(rng).add([v.bos]).speech(1.1).add([v.eoh]).add([v.ins], free).text("five seven", State.TRANSCRIPT)
    out.add([v.res], State.TRANSCRIPT).text("here is five seven", free).speech(0.9, free).image(free).add([v.eom], free)
    answer = [text("five seven"), text("here is five seven"), speech("chat_out", "57"), image("chat", "57")]
    record(
        "chat", "one turn, four kinds of content", [speech("chat_in", "57")], answer, out, "five seven", "five seven"
    )
    assert set(Modality) == {kind for sample in samples for kind in sample["modalities"]}
    return samples


if __name__ == "__main__":
    from aromni_jax.evaluation.report import write_report

    print(write_report(write_fake_run(Path(sys.argv[1]))))
