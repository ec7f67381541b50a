"""The whole house in miniature: raw media, tokens, training, decoding, judging, report; and how it fails."""

import dataclasses
import json

import pytest

from aromni_jax.cli.demo import losses_fall
from aromni_jax.cli.main import main
from aromni_jax.evaluation import standards


class _Deaf:
    """A judge that hears "one two" whatever is said; real ones are not in the test environment."""

    name = "deaf"

    def transcribe(self, wave, sample_rate=16_000):
        assert wave.ndim == 1 and sample_rate == 16_000
        return "one two"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("aromni_jax.cli.evaluate.make_judge", lambda name, standard: _Deaf())
    few = standards.Sizes(heard=4, seen=4, spoken=3, drawn=3, crossed=3, chats=2)
    numbers = dataclasses.replace(standards.STANDARDS["numbers"], sizes=few)
    monkeypatch.setitem(standards.STANDARDS, "numbers", numbers)


def _demo(tmp_path, *more):
    words = ["demo", "--run-dir", str(tmp_path / "run"), "--config", "configs/numbers.py:tiny", "--examples", "300"]
    return main([*words, "--set", "data.batch_size=8", *more])


def test_the_demo_runs_whole_then_says_it_is_finished_then_goes_on(tmp_path, small, capsys):
    assert _demo(tmp_path, "--steps", "4") == 0
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    held_out = metrics["held_out"]
    assert {"asr", "tts", "caption", "t2i", "chat", "asr_held_out_voice", "loss_falls"} <= set(held_out)
    assert 0 <= held_out["asr"]["wer"] <= 1 and held_out["asr"]["bound"] == 0.15
    assert metrics["model"]["parameters"] == sum(metrics["model"]["by_group"].values()) == 131_584
    assert set(metrics["timing"]) >= {"tokenise", "train", "evaluate", "bound"}
    assert metrics["data"]["packing"]["packed"] > metrics["data"]["packing"]["padded_to_longest"]
    assert (run / "report.html").stat().st_size > 10_000
    samples = json.loads((run / "samples" / "samples.json").read_text())
    assert {sample["task"] for sample in samples} >= {"speech_to_text", "text_to_image", "chat"}
    assert all(len(sample["tokens"]) == len(sample["states"]) for sample in samples)
    out = capsys.readouterr().out
    assert "held-out" in out and "report:" in out

    assert _demo(tmp_path, "--steps", "4") == 0
    assert "is finished (step 4)" in capsys.readouterr().out

    assert _demo(tmp_path, "--steps", "6") == 0
    out = capsys.readouterr().out
    assert "resumed" in out and "at step 4 of 6" in out

    # Asked for less than there is: the metrics of six steps must not be passed off as those of four.
    assert _demo(tmp_path, "--steps", "4") == 0
    assert "is finished (step 6)" in capsys.readouterr().out
    six = json.loads((run / "metrics.json").read_text())
    assert six["training"]["steps"] == 6
    assert "bound" not in six["timing"], "the time of two sittings must not be held against the bound on one"


def test_a_misspelt_key_is_one_line(tmp_path, capsys):
    assert _demo(tmp_path, "--set", "train.stps=4") == 1
    error = capsys.readouterr().err
    assert error == "aromni: unknown config key train.stps: did you mean train.steps?\n"


def _held_out(*losses):
    return [{"kind": "eval", **dict.fromkeys(("loss/text", "loss/image", "loss/speech"), loss)} for loss in losses]


@pytest.mark.parametrize(
    ("losses", "fall"),
    [
        ((3, 2, 1), True),
        ((3, 1, 2), False),
        ((3, 1, 1), False),
        ((3, 1, None), False),
        ((1,), False),
        ((), False),
        ((9, 8, 7, 6, 5, 4, 3.0, 3.2, 2.0, 2.1), True),  # the last reading is not the lowest, but the curve falls
        ((9, 8, 7, 6, 5, 4, 2.0, 2.2, 2.0, 2.3), False),
    ],
)
def test_held_out_losses_fall_if_the_end_lies_below_what_was_before(losses, fall):
    assert set(losses_fall(_held_out(*losses)).values()) == {fall}


@pytest.mark.slow
def test_the_demo_of_another_world(tmp_path, monkeypatch, capsys):
    """Coloured pictures, sentences, several voices: the same commands, other media, other judges."""
    monkeypatch.setattr("aromni_jax.cli.evaluate.make_judge", lambda name, standard: _Deaf())
    few = standards.Sizes(heard=4, seen=4, spoken=3, drawn=3, crossed=3, chats=2)
    monkeypatch.setitem(standards.STANDARDS, "things", dataclasses.replace(standards.STANDARDS["things"], sizes=few))
    words = ["demo", "--world", "things", "--run-dir", str(tmp_path / "run"), "--config", "configs/things.py:tiny"]
    assert main([*words, "--examples", "300", "--steps", "4", "--set", "data.batch_size=8"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"asr", "tts", "caption", "t2i", "chat"} <= set(metrics["held_out"])
    assert "asr_held_out_voice" not in metrics["held_out"] and metrics["held_out"]["t2i"]["bound"] == 0.6
    assert "report:" in capsys.readouterr().out
    assert main(["evaluate", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "scores")]) == 0
