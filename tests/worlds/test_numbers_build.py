"""The build script, without its downloads: splitting, trimming, checks, atlases and clear failures."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aromni_jax.errors import UserError
from aromni_jax.worlds.numbers import build
from aromni_jax.worlds.numbers.world import DIGITS, MEDIA, TILE

quick = settings(max_examples=50, deadline=None)


def test_the_shipped_split_is_the_built_one():
    assert json.loads((MEDIA / "split.json").read_text()) == build.split_strings()


@quick
@given(st.integers(0, 1000))
def test_any_seed_splits_evenly(seed):
    split = build.split_strings(seed)
    assert not set(split["train"]) & set(split["test"])
    for place in (0, 1):
        assert sorted(s[place] for s in split["test"]) == sorted("0123456789" * 2)
        assert sorted(s[place] for s in split["train"]) == sorted("0123456789" * 8)


def _tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(np.arange(int(seconds * build.SAMPLE_RATE)) * 0.2)).astype(np.float32)


@pytest.mark.parametrize(
    "clip",
    [_tone(0.1), _tone(1.2), np.zeros(8000, np.float32), np.sign(_tone(0.4)), np.pad(_tone(0.2), 3000)],
    ids=["short", "long", "silent", "clipped", "half silent"],
)
def test_broken_clips_are_refused(clip):
    with pytest.raises(UserError, match=r"x\.flac: broken render"):
        build.check_clip(clip, "x.flac")


def test_every_shipped_clip_passes_the_check():
    from aromni_jax.worlds.numbers import NumbersWorld

    for (voice, part), by_digit in NumbersWorld.load().clips.items():
        for digit, clips in enumerate(by_digit):
            for clip in clips:
                build.check_clip(clip.wave, f"{voice} {part} {digit}")
    assert build.DIGITS == DIGITS and build.TILE == TILE


def test_atlas_holds_its_tiles_in_order(tmp_path):
    tiles = np.random.default_rng(0).integers(0, 16, (200, 28, 28)).astype(np.uint8) * 17
    build._write_atlas(tmp_path / "a.png", tiles)
    grid = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    np.testing.assert_array_equal(grid[28:56, 56:84], tiles[102])
    with pytest.raises(UserError, match="199 drawings"):
        build._write_atlas(tmp_path / "b.png", tiles[:199])


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "aromni_jax.worlds.numbers.build"], capture_output=True, text=True)
    assert done.returncode == 2 and "--out" in done.stderr
