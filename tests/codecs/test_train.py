"""The command that trains codecs: what it refuses before the work, what it writes, and what it says of itself."""

import json

import numpy as np
import pytest

from aromni_jax.codecs import train
from aromni_jax.codecs.small_image import ImageConfig
from aromni_jax.codecs.small_speech import SpeechConfig
from aromni_jax.errors import UserError


class OneTone:
    """A world of one utterance in two parts."""

    def strings(self, split):
        return ["a"]

    def utterance(self, string, rng, *, split, voice=None):
        return 0.3 * np.sin(np.arange(8000) * 0.2).astype(np.float32)


@pytest.fixture
def tones(monkeypatch):
    monkeypatch.setattr(train, "load_world", lambda name: OneTone())


@pytest.fixture
def quick(tones, monkeypatch):
    """No training and no measuring."""

    def made(world, shape, *, seed, **_):
        return SpeechConfig(**shape), {"codebook": np.full((2, 2), seed)}

    monkeypatch.setattr(train, "train_speech", made)
    monkeypatch.setattr(train, "_measured", lambda kind, folder, world, out: {"codes": 2})


def test_a_codec_says_how_it_was_made_however_its_folder_was_named(tmp_path, quick):
    words = ["speech", "--codes", "8", "--set", "dim=9", "rounds=0", "--adversarial", "0.1"]
    for out in (["--out", str(tmp_path / "a")], [f"--out={tmp_path / 'b'}"]):
        train.main([words[0], *out, *words[1:]])
    cards = [json.loads((tmp_path / name / "codec.json").read_text()) for name in "ab"]
    assert cards[0]["training"]["command"] == "python -m aromni_jax.codecs.train " + " ".join(words)
    assert cards[0]["training"]["command"] == cards[1]["training"]["command"]
    assert cards[0]["config"]["dim"] == 9 and cards[0]["config"]["codes"] == 8 and cards[0]["figures"] == {"codes": 2}


def test_an_interruption_leaves_the_codec_that_was_there(tmp_path, quick, monkeypatch):
    train.main(["speech", "--out", str(tmp_path)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(["speech", "--out", str(tmp_path), "--seed", "1"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set nope=3", "no such network.*nope"),
        ("--set dim=0", "no such network.*dim=0"),
        ("--set window=300", "no such network.*window=300 is no multiple of frame=200"),
        ("--set dim=-1", "write it as FIELD=NUMBER"),
        ("--set codes=3", "say it with --codes"),
        ("--set sample_rate=8000", "the world's media give it"),
    ],
)
def test_bad_shapes_are_refused_in_a_line(tmp_path, tones, words, message):
    with pytest.raises(UserError, match=message):
        train.main(["speech", "--pool", "1", "--out", str(tmp_path), *words.split()])


@pytest.mark.parametrize(
    "words", ["--steps 0", "--batch 0", "--codes -1", "--pool 0", "--seed -1", "--adversarial -1", "--adversarial nan"]
)
def test_bad_numbers_are_bad_usage(tmp_path, words):
    with pytest.raises(SystemExit) as error:
        train.main(["speech", "--out", str(tmp_path), *words.split()])
    assert error.value.code == 2


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_world", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        train.main(["speech", "--out", str(tmp_path / "file" / "below")])


def test_a_patch_divides_the_picture():
    with pytest.raises(ValueError, match="patch=5 does not divide"):
        ImageConfig(height=64, width=64, patch=5)
