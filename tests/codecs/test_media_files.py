"""Which files a command works on, and that no result falls on another or on an input."""

import os

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aromni_jax.codecs import media_files
from aromni_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Media with right names, wrong names, none, and things that are no media."""
    top = tmp_path / "in"
    (top / "deep" / "er").mkdir(parents=True)
    (top / ".hidden").mkdir()
    picture, wave = Image.fromarray(np.zeros((4, 4), np.uint8)), np.zeros(800)
    picture.save(top / "a.png")
    picture.save(top / "deep" / "picture.dat", format="BMP")
    picture.save(top / "deep" / ".secret.png")
    picture.save(top / ".hidden" / "b.png")
    soundfile.write(top / "deep" / "er" / "c.flac", wave, 8000)
    soundfile.write(top / "wrong.png", wave, 16_000, format="WAV")
    (top / "broken.wav").write_bytes(b"RIFF0000")
    (top / "notes.txt").write_text("words")
    return top


def names(rows):
    return [row.name for row in rows]


def test_media_are_told_by_what_they_are(folder):
    files, passed = media_files.media(media_files.find([folder]), ["image", "speech"])
    assert all(file.changed == file.path.stat().st_mtime_ns for file in files)
    assert {file.name: (file.kind, file.seconds) for file in files} == {
        "a.png": ("image", 0),
        "deep/picture.dat": ("image", 0),
        "deep/er/c.flac": ("speech", 0.1),
        "wrong.png": ("speech", 0.05),
        "broken.wav": ("speech", 0),  # its name says that it is meant to be read
    }
    assert names(passed) == ["notes.txt"]


def test_a_codec_of_one_kind_passes_over_the_others(folder):
    files, passed = media_files.media(media_files.find([folder]), ["image"])
    assert names(files) == ["a.png", "deep/picture.dat"] and len(passed) == 4
    with pytest.raises(UserError, match=r"c\.flac is a sound file, and the codec is for picture files"):
        media_files.media(media_files.find([folder / "deep" / "er" / "c.flac"]), ["image"])


def test_a_given_file_is_kept_whatever_it_is(folder):
    files, passed = media_files.media(media_files.find([folder / "notes.txt"]), ["speech"])
    assert names(files) == ["notes.txt"] and not passed


def test_the_output_folder_is_not_looked_into(folder):
    everything = media_files.find([folder])
    (folder / "out" / "deep").mkdir(parents=True)
    (folder / "out" / "deep" / "a.png").write_bytes((folder / "a.png").read_bytes())
    assert media_files.find([folder], folder / "out") == everything
    assert len(media_files.find([folder])) == len(everything) + 1
    with pytest.raises(UserError, match="is also an input"):
        media_files.find([folder], folder / "deep" / "..")


def test_each_file_once_and_none_missing(folder):
    assert names(media_files.find([folder / "a.png", folder, folder])) == names(media_files.find([folder]))
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        media_files.find([folder / "none.png"])


def test_outputs_fall_neither_together_nor_on_an_input(tmp_path):
    with pytest.raises(UserError, match=r"^a and b would both be written to .*x: rename one, or give them in two"):
        media_files.check_distinct([("a", tmp_path / "x"), ("b", tmp_path / "x")], [])
    with pytest.raises(UserError, match="would replace the input"):
        media_files.check_distinct([("a", tmp_path / "x")], [tmp_path / "y" / ".." / "x"])
    with pytest.raises(UserError, match="too long a name"):
        media_files.check_distinct([("a", tmp_path / ("é" * 128))], [])


def test_links_that_lead_nowhere_are_named_and_pipes_passed_over(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.wav").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = media_files.find([tmp_path])
    assert names(found) == ["gone.wav", "loop.png"]
    assert [file.changed for file in media_files.media(found, ["image", "speech"])[0]] == [0, 0]
    (given,), _ = media_files.media(media_files.find([tmp_path / "pipe.png"]), ["image"])
    assert given.kind == "image", "its reader says that it is no file"


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match=r"cannot look into .*Permission denied"):
        media_files.find([tmp_path])


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b.c"]), min_size=1, max_size=5).map("/".join))
def test_inside_is_inside(name):
    place = os.path.normpath(os.path.join("/root/of/it", name))
    if media_files.is_inside(name):
        assert place.startswith("/root/of/it/")
    elif ".." not in name:
        assert not place.startswith("/root/of/it/"), "no more is refused than must be"
