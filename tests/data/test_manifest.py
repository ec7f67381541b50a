"""A manifest that somebody has edited is read, or answered with one line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aromni_jax.data.manifest import NAME, Manifest
from aromni_jax.errors import UserError
from tests import wrong_json


@pytest.fixture
def values(make_data_set):
    """What a manifest file holds."""
    written = json.loads((make_data_set(8) / NAME).read_text())
    return written | {"request": {"world": "numbers", "codecs_at": {"text": "numbers"}, "seed": 0}}


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_edit_is_read_or_told(values, data):
    _, edited = data.draw(wrong_json.edits(values))
    try:
        manifest = Manifest.from_json(json.dumps(edited), NAME)
    except UserError as error:
        assert str(error).startswith(f"{NAME}: no data set manifest (") and "\n" not in str(error)
    else:
        assert all(manifest.figures(split)["tokens"] >= 0 for split in manifest.splits)
        assert Manifest.from_json(manifest.to_json(), NAME) == manifest


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((), [], "the whole is []; expected an object"),
        (("splits", "train"), 3, "splits.train is 3; expected an object"),
        (("splits", "train", "a", "examples"), "60", "splits.train.a.examples is '60'; expected a whole number"),
        (("splits", "train", "a", "records"), None, "splits.train.a.records is None; expected a string"),
        (("splits", "train", "a", "tasks"), wrong_json.GONE, "splits.train.a: missing or unknown: tasks"),
        (("splits", "test"), wrong_json.GONE, "joint: missing or unknown: test"),
        (
            ("joint", "test", "efficiency", "packed"),
            "full",
            "joint.test.efficiency.packed is 'full'; expected a number",
        ),
        (("sequence_length",), 64.0, "sequence_length is 64.0; expected a whole number"),
        (("vocabulary",), [], "vocabulary is []; expected an object"),
        (("request", "world"), 3, "request.world is 3; expected a string"),
        (("version",), "1", "version '1', this program reads version 1"),
    ],
)
def test_the_field_is_named(values, place, value, message):
    with pytest.raises(UserError) as told:
        Manifest.from_json(json.dumps(wrong_json.put(values, place, value)), "data/manifest.json")
    assert str(told.value) == f"data/manifest.json: no data set manifest ({message}); run `aromni prepare` again"


def test_brackets_without_end():
    with pytest.raises(UserError, match=r"no data set manifest \("):
        Manifest.from_json("[" * 100_000, NAME)
