"""The things world: what is held out stays out, media match their manifest, pictures and speech are what they say."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.errors import UserError
from aromni_jax.worlds import load_world
from aromni_jax.worlds.things import SAMPLE_RATE, ThingsWorld, build, catalogue
from aromni_jax.worlds.things.world import MEDIA, STYLES, TILE, UNSEEN_STYLE, drawn

WORLD = ThingsWorld.load()
seeds = st.integers(0, 2**32 - 1)
train_strings = st.sampled_from(WORLD.strings("train"))
quick = settings(max_examples=25, deadline=None)


def test_it_is_found_by_name():
    assert load_world("things") is WORLD


def test_manifest_sums_match_the_files_and_name_all_of_them():
    groups = json.loads((MEDIA / "manifest.json").read_text())["groups"]
    notice = (MEDIA / "NOTICE.md").read_text()
    for folder, group in groups.items():
        assert {path.name for path in (MEDIA / folder).iterdir()} == set(group["files"])
        for name, expected in group["files"].items():
            assert hashlib.sha256((MEDIA / folder / name).read_bytes()).hexdigest() == expected, name
        assert f"## {folder}" in notice
        for source in group["sources"].values():
            assert source["package"] in notice and source["licence"]
    for text in (MEDIA / "licences").iterdir():
        assert f"licences/{text.name}" in notice
    top = (Path(__file__).parents[2] / "NOTICE").read_text()
    for owner in ("Microsoft", "Google", "EmojiOne", "Twitter", "hibari", "joe", "Flite"):
        assert owner in notice and owner in top, "what is shipped is named where a reader looks first"


def test_every_thing_has_its_share_of_sentences_and_every_sentence_is_tested():
    train, test = WORLD.strings("train"), WORLD.strings("test")
    assert not set(train) & set(test)
    texts = [{WORLD.text(string) for string in part} for part in (train, test)]
    assert not texts[0] & texts[1] and len(texts[0]) == len(train) and len(texts[1]) == len(test)
    for thing in catalogue.THINGS:
        assert sum(catalogue.thing_of(string) == thing for string in train) == 1 + catalogue.TRAIN_SENTENCES
        assert sum(catalogue.thing_of(string) == thing for string in test) == catalogue.TEST_SENTENCES
    assert 100 <= len(catalogue.THINGS) <= 200
    used = np.bincount([int(string.rpartition("/")[2]) for string in test], minlength=len(catalogue.SENTENCES))
    assert used[0] == 0 and used[1:].min() >= 2


def test_texts_are_plain_sentences():
    assert WORLD.text("apple/0") == "an apple" and WORLD.text("wolf/0") == "a wolf"
    assert WORLD.text("apple/3") == "where is the apple" and WORLD.naming("apple/3") == "apple/0"
    for split in ("train", "test"):
        assert all(WORLD.text(string).replace(" ", "").isalpha() for string in WORLD.strings(split))
    for bad in ("apple", "apple/99", "unicorn/1", "apple/x"):
        with pytest.raises(UserError, match="THING/SENTENCE"):
            WORLD.text(bad)


def test_every_sentence_is_spoken_by_the_house_and_by_others():
    for part in ("train", "test"):
        for string in WORLD.strings(part):
            voices = set(WORLD.recordings[part][string])
            assert WORLD.voice in voices and len(voices) >= 2 and voices <= set(WORLD.voices)
    names = {string for string in WORLD.strings("train") if WORLD.naming(string) == string}
    assert all(set(WORLD.recordings["train"][string]) == set(WORLD.voices) for string in names)
    assert all(WORLD.voice in WORLD.recordings["test"][string] for string in names)


def test_no_recording_is_in_both_parts():
    """Nor is a sentence; the names are spoken alike in both, and only answered (see the world's text)."""
    sums = [
        {hashlib.sha256(wave.tobytes()).hexdigest() for by_voice in part.values() for wave in by_voice.values()}
        for part in WORLD.recordings.values()
    ]
    assert not sums[0] & sums[1]


@quick
@given(train_strings, seeds)
def test_training_media_are_reproducible_and_in_range(string, seed):
    waves = [WORLD.utterance(string, np.random.default_rng(seed), split="train") for _ in range(2)]
    np.testing.assert_array_equal(*waves)
    assert waves[0].dtype == np.float32 and np.abs(waves[0]).max() <= 1
    assert 0.4 <= len(waves[0]) / SAMPLE_RATE <= 5
    pictures = [WORLD.picture(string, np.random.default_rng(seed), split="train") for _ in range(2)]
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].shape == (64, 64, 3) and pictures[0].dtype == np.uint8
    assert (pictures[0].min(axis=2) < 250).mean() > 0.02, "something is drawn"
    assert (pictures[0][[0, 0, -1, -1], [0, -1, 0, -1]].min(axis=1) == 255).sum() >= 3, "on white"


def test_test_pictures_are_of_the_unseen_style_and_always_the_same():
    assert UNSEEN_STYLE not in STYLES
    first, second = (WORLD.picture("fox/0", np.random.default_rng(seed), split="test") for seed in (1, 2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, drawn(WORLD.drawings[UNSEEN_STYLE]["fox"], None))


def test_answers_are_drawn_in_one_style_with_a_light_hand():
    plain = drawn(WORLD.drawings[STYLES[0]]["apple"], None).astype(int)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        answer = WORLD.picture("apple/0", rng, split="train", style=WORLD.style).astype(int)
        assert min(np.abs(answer - plain).mean(), np.abs(answer[:, ::-1] - plain).mean()) < 12
    with pytest.raises(UserError, match="style 'cubist'"):
        WORLD.picture("fox/0", np.random.default_rng(0), split="train", style="cubist")


def test_a_drawing_keeps_its_colours_and_its_place():
    square = np.zeros((TILE, TILE, 4), np.uint8)
    square[24:72, 24:72] = (200, 30, 40, 255)
    picture = drawn(square, None)
    np.testing.assert_array_equal(picture[32, 32], (200, 30, 40))
    np.testing.assert_array_equal(picture[0, 0], (255, 255, 255))
    rows = np.flatnonzero(picture[:, 32, 1] < 128)
    assert abs(len(rows) - 48 * 64 / 96 * 0.96) <= 2 and abs(rows.mean() - 31.5) <= 1


def test_a_voice_can_be_chosen():
    whole = [WORLD.utterance("fox/0", np.random.default_rng(seed), split="test", voice="hibari") for seed in range(3)]
    lengths = {len(np.trim_zeros(wave)) for wave in whole}
    assert len(lengths) == 1
    with pytest.raises(UserError, match="no recording of 'fox/0' in 'test' by joe"):
        WORLD.utterance("fox/0", np.random.default_rng(0), split="test", voice="joe")
    with pytest.raises(UserError, match="split 'fast'"):
        WORLD.picture("fox/0", np.random.default_rng(0), split="fast")
    with pytest.raises(UserError, match="THING/SENTENCE"):
        WORLD.picture("unicorn/0", np.random.default_rng(0), split="test")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("speech/recordings.json", None, "cannot be read"),
        ("speech/recordings.json", b"{", "not valid JSON"),
        ("speech/recordings.json", b'{"hibari-test": [["fox/0", 0, 99999999]]}', "behind the end"),
        ("speech/recordings.json", b"[]", "want .*VOICE-train"),
        ("speech/recordings.json", b'{"hibari-later": []}', "want .*VOICE-train"),
        ("speech/recordings.json", b'{"hibari-test": [["fox/0", -9, 9]]}', "want .*VOICE-train"),
        ("speech/recordings.json", b'{"hibari-test": [["fox/0"]]}', "want .*VOICE-train"),
        ("speech/hibari-test.ogg", b"OggS", "cannot be read as audio"),
        ("pictures/noto.webp", b"RIFF", "cannot be read as a picture"),
    ],
)
def test_broken_media_are_named(tmp_path, file, content, message):
    media = tmp_path / "media"
    (media / "speech").mkdir(parents=True)
    shutil.copytree(MEDIA / "pictures", media / "pictures")
    shutil.copyfile(MEDIA / "speech/hibari-test.ogg", media / "speech/hibari-test.ogg")
    (media / "speech/recordings.json").write_text('{"hibari-test": []}')
    if content is None:
        (media / file).unlink()
    else:
        (media / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        ThingsWorld.load(media)
    assert file.rpartition("/")[2] in str(error.value)


def test_the_build_asks_for_every_recording_once():
    jobs = list(build.jobs())
    assert len(set(jobs)) == len(jobs) == sum(len(v) for part in WORLD.recordings.values() for v in part.values())
    for voice, part, string in jobs:
        assert voice in WORLD.recordings[part][string]


def test_a_missing_icon_is_named():
    with pytest.raises(UserError, match="noto: no icon 'unicycle'"):
        build._tile(None, {"prefix": "noto", "icons": {}}, "unicycle")
