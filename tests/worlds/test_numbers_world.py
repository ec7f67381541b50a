"""The numbers world: what is held out stays out, media match their manifest, composition is reproducible."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.errors import UserError
from aromni_jax.worlds.numbers import SAMPLE_RATE, NumbersWorld
from aromni_jax.worlds.numbers.world import MEDIA

WORLD = NumbersWorld.load()
SPLITS = ("train", "test")
strings = st.from_regex(r"\A[0-9]{2}\Z")
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=30, deadline=None)


def _sums(arrays) -> list[str]:
    return [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]


def test_manifest_sums_match_the_files_and_name_all_of_them():
    groups = json.loads((MEDIA / "manifest.json").read_text())["groups"]
    for folder, group in groups.items():
        present = {path.name for path in (MEDIA / folder).iterdir()}
        assert present == set(group["files"])
        assert group["licence"] and group["version"]
        for name, expected in group["files"].items():
            assert hashlib.sha256((MEDIA / folder / name).read_bytes()).hexdigest() == expected, name


def test_every_group_is_named_in_the_notice():
    notice = (MEDIA / "NOTICE.md").read_text()
    for folder, group in json.loads((MEDIA / "manifest.json").read_text())["groups"].items():
        assert f"## {folder}" in notice and group["package"] in notice


def test_strings_split_80_to_20_and_every_digit_stands_in_both_places():
    train, test = (WORLD.strings(split) for split in SPLITS)
    assert len(train) == 80 and len(test) == 20
    assert set(train) | set(test) == {f"{n:02d}" for n in range(100)}
    for place in (0, 1):
        assert {s[place] for s in train} == {s[place] for s in test} == set("0123456789")
    assert WORLD.strings("fast") == test


def test_no_recording_is_shared_between_parts_or_voices():
    sums = {key: _sums(clip.wave for clips in by_digit for clip in clips) for key, by_digit in WORLD.clips.items()}
    counts = {key: len(values) for key, values in sums.items()}
    assert counts == {
        ("hibari", "train"): 360,
        ("hibari", "test"): 100,
        ("hibari", "fast"): 40,
        ("allison", "test"): 10,
    }
    everything = [value for values in sums.values() for value in values]
    assert len(set(everything)) == len(everything)


def test_no_drawing_is_shared_between_parts():
    train, test = (_sums(tile for tiles in WORLD.drawings[split] for tile in tiles) for split in SPLITS)
    assert len(train) == 8000 and len(test) == 1500
    assert not set(train) & set(test)
    assert all(len(tiles) >= 100 for split in SPLITS for tiles in WORLD.drawings[split])


def test_held_out_rates_lie_outside_those_of_training():
    rates = {part: [c.rate for cs in WORLD.clips["hibari", part] for c in cs] for part in ("train", "fast")}
    # Training stretches its clips by up to 5 % in addition.
    assert min(rates["fast"]) > 1.05 * max(rates["train"])


@pytest.mark.parametrize(
    ("split", "voice"), [("train", "hibari"), ("test", "hibari"), ("fast", "hibari"), ("test", "allison")]
)
@quick
@given(string=strings, seed=seeds)
def test_utterances_are_reproducible_mono_waves(split, voice, string, seed):
    first, again = (WORLD.utterance(string, np.random.default_rng(seed), split=split, voice=voice) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32 and first.ndim == 1
    assert 0.5 < first.size / SAMPLE_RATE < 2.0
    assert 0.01 < np.abs(first).max() <= 1.0


@quick
@given(string=strings, seed=seeds)
def test_a_test_utterance_is_made_of_test_recordings_of_its_digits_in_order(string, seed):
    sounding = np.trim_zeros(WORLD.utterance(string, np.random.default_rng(seed), split="test"))
    first, second = (
        [np.trim_zeros(clip.wave) for clip in WORLD.clips["hibari", "test"][digit]] for digit in map(int, string)
    )
    assert any(np.array_equal(sounding[: clip.size], clip) for clip in first)
    assert any(np.array_equal(sounding[-clip.size :], clip) for clip in second)


@pytest.mark.parametrize("split", SPLITS)
@quick
@given(string=strings, seed=seeds)
def test_pictures_are_reproducible(split, string, seed):
    first, again = (WORLD.picture(string, np.random.default_rng(seed), split=split) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (28, 56) and first.dtype == np.uint8
    assert all(half.max() > 100 for half in np.split(first, 2, axis=1))


@quick
@given(string=strings, seed=seeds)
def test_a_test_picture_is_two_drawings_of_its_digits(string, seed):
    picture = WORLD.picture(string, np.random.default_rng(seed), split="test")
    for digit, half in zip(map(int, string), np.split(picture, 2, axis=1), strict=True):
        assert (WORLD.drawings["test"][digit] == half).all(axis=(1, 2)).any()


def test_training_varies_and_other_seeds_differ():
    for make in (WORLD.utterance, WORLD.picture):
        made = {make("23", np.random.default_rng(seed), split="train").tobytes() for seed in range(20)}
        assert len(made) == 20


def test_speed_range_picks_recordings():
    slow, quick = (
        np.mean([WORLD.utterance("47", np.random.default_rng(s), split="test", speed_range=r).size for s in range(20)])
        for r in ((0.85, 0.95), (1.1, 1.2))
    )
    assert slow > 1.1 * quick


def test_text():
    assert WORLD.text("23") == "two three" and WORLD.text("00") == "zero zero"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: WORLD.strings("valid"), "'valid'.*train, test"),
        (lambda rng: WORLD.text("234"), "'234'.*two digits"),
        (lambda rng: WORLD.text("2x"), "two digits"),
        (lambda rng: WORLD.picture("23", rng, split="fast"), "'fast'.*train, test"),
        (lambda rng: WORLD.utterance("23", rng, split="train", voice="allison"), "'train' of voice 'allison'"),
        (lambda rng: WORLD.utterance("23", rng, split="test", voice="bob"), "'bob'.*hibari, allison"),
        (lambda rng: WORLD.utterance("23", rng, split="test", speed_range=(3, 4)), "'two'.*speed_range"),
    ],
)
def test_wrong_requests_are_explained(call, message):
    with pytest.raises(UserError, match=message):
        call(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("split.json", None),
        ("split.json", b"{"),
        ("speech/hibari/recordings.json", b'{"0_00.flac": {"digit": 0}}'),
        ("speech/hibari/3_05.flac", b"no audio"),
        ("speech/allison/7.flac", None),
        ("drawings/test.png", b"no picture"),
        ("drawings/labels.json", b'{"train": [1, 2], "test": []}'),
    ],
)
def test_broken_media_name_the_file(tmp_path, file, content):
    media = tmp_path / "media"
    shutil.copytree(MEDIA, media)
    (media / file).unlink() if content is None else (media / file).write_bytes(content)
    with pytest.raises(UserError, match=file.split("/")[-1] if "labels" not in file else "train.png"):
        NumbersWorld.load(media)
