"""The models that come with the package: they load with their codecs, and their scores are as good as promised."""

import json
import pathlib

import numpy as np
import pytest

import aromni_jax
from aromni_jax.evaluation.held_out import bounds_met
from aromni_jax.evaluation.standards import standard_of
from aromni_jax.tasks import Assistant
from aromni_jax.worlds import WORLDS, load_world

ROOT = pathlib.Path(aromni_jax.__file__).parent / "worlds"
MOST_BYTES = 40_000_000


@pytest.mark.parametrize("world", WORLDS)
def test_scores_meet_the_bounds_and_the_folder_is_small(world):
    folder = ROOT / world / "checkpoint"
    scores = json.loads((folder / "scores.json").read_text())
    missed = {name for name, verdict in bounds_met(scores, standard_of(world).bounds).items() if not verdict["passed"]}
    assert not missed
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MOST_BYTES


@pytest.mark.parametrize("world", WORLDS)
def test_it_understands_what_it_was_not_trained_on(world):
    """A few held-out items, as a user would give them: most transcripts must be right."""
    assistant, here = Assistant.load(world), load_world(world)
    rng = np.random.default_rng(0)
    strings = here.strings("test")[:6]
    heard = assistant.transcribe([here.utterance(string, rng, split="test") for string in strings])
    assert sum(text == here.text(string) for text, string in zip(heard, strings, strict=True)) >= 4
