"""The judge of drawn things: good on drawings that it was not fitted on, sure of its input, and no memory of pixels."""

import numpy as np
import pytest

from aromni_jax.errors import UserError
from aromni_jax.worlds.things import ThingsWorld

pytest.importorskip("sklearn")

from aromni_jax.evaluation.thing_judge import ThingImageJudge

WORLD = ThingsWorld.load()
THINGS = [string for string in WORLD.strings("train") if WORLD.naming(string) == string]


@pytest.fixture(scope="module")
def judge():
    return ThingImageJudge(WORLD)


@pytest.mark.parametrize(("split", "least"), [("train", 0.95), ("test", 0.75)])
def test_it_knows_what_it_sees(judge, split, least):
    """Fresh drawings in known styles, and drawings in a style that it has never seen."""
    rng = np.random.default_rng(11)
    right = [judge.read(WORLD.picture(thing, rng, split=split)) == WORLD.text(thing) for thing in THINGS]
    assert np.mean(right) >= least


def test_place_and_size_do_not_matter(judge):
    picture = WORLD.picture("apple/0", np.random.default_rng(0), split="test")
    small = np.full((120, 150, 3), 255, np.uint8)
    small[40:104, 60:124] = picture
    assert judge.read(small) == judge.read(picture) == "an apple"


def test_it_names_something_on_an_empty_page(judge):
    assert judge.read(np.full((64, 64, 3), 255, np.uint8)) in {WORLD.text(thing) for thing in THINGS}


@pytest.mark.parametrize("picture", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_other_arrays_are_refused(judge, picture):
    with pytest.raises(UserError, match="sees uint8"):
        judge.read(picture)
