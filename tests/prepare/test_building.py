"""A data set takes the place of another whole, or the other stays."""

import pathlib

import pytest

from aromni_jax.errors import UserError
from aromni_jax.prepare.building import already_built, building


@pytest.fixture
def old(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").touch()
    return tmp_path / "data"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_new_one_takes_the_place(old):
    with building(old) as partial:
        (partial / "new").touch()
        assert names(old) == ["old"]
    assert names(old) == ["new"] and names(old.parent) == ["data"]


def test_an_error_leaves_the_old_one(old):
    with pytest.raises(ValueError, match="no"), building(old):
        raise ValueError("no")
    assert names(old) == ["old"] and names(old.parent) == ["data"]


def test_a_move_that_fails_half_way_leaves_the_old_one(old, monkeypatch):
    rename = pathlib.Path.rename

    def fail_for_the_new_one(path, target):
        if path.name.endswith(".partial"):
            raise OSError(28, "No space left on device", str(path))
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail_for_the_new_one)
    with pytest.raises(UserError, match="No space left"), building(old):
        pass
    assert names(old) == ["old"] and names(old.parent) == ["data"]


def test_a_folder_with_another_manifest_is_never_replaced(old):
    (old / "manifest.json").write_text('{"name": "a page, or the files of a model"}')
    for force in (False, True):
        with pytest.raises(UserError, match="holds no data set: give another folder"):
            already_built(old, {}, force)


@pytest.mark.parametrize(
    "text", ['{"version": 0, "vocabulary_fingerprint": "0"}', '{"version": 1, "vocabulary_fingerprint": ']
)
def test_force_replaces_an_old_or_damaged_data_set(old, text):
    (old / "manifest.json").write_text(text)
    assert already_built(old, {}, force=True) is None
    with pytest.raises(UserError, match=r"manifest"):
        already_built(old, {}, force=False)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "data").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        already_built(tmp_path / "data", {}, force=True)
