"""Checkpoints: bit-equal, complete or absent, checked when read, and one clear line when something is wrong."""

import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax import store
from aromni_jax.config import MeshConfig
from aromni_jax.errors import UserError
from aromni_jax.parallel import make_mesh
from aromni_jax.training import TrainState, abstract_state, make_optimizer
from aromni_jax.training.checkpoints import Checkpoints
from aromni_jax.vocabulary import JointVocabulary
from tests.full_disk import full_disk
from tests.training import small_run

RUN = small_run.config(pathlib.Path("unused"))
OPTIMIZER = make_optimizer(RUN.optimizer, RUN.train.steps)


def abstract(mesh):
    """Shapes and shardings of the state on a mesh."""
    return abstract_state(RUN, small_run.VOCABULARY, OPTIMIZER, mesh)


def random_state(mesh, step):
    """A state full of noise, so that a mix-up of two arrays shows."""
    leaves, structure = jax.tree.flatten(abstract(mesh))
    random = np.random.default_rng(step)
    arrays = [jax.device_put(random.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding) for leaf in leaves]
    return TrainState(**{**vars(structure.unflatten(arrays)), "step": jnp.int32(step)})


def assert_bit_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def saved(tmp_path):
    """A run folder with complete checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "run", keep=2)
    for step in (1, 2):
        checkpoints.save(random_state(small_run.one_device(), step), RUN, small_run.VOCABULARY, {"step": step})
    checkpoints.close()
    return tmp_path / "run"


def restore(run_directory, mesh=None, run=RUN, vocabulary=small_run.VOCABULARY, warn=None):
    checkpoints = Checkpoints(run_directory, keep=2)
    lines = []
    found = checkpoints.restore(abstract(mesh or small_run.one_device()), run, vocabulary, warn or lines.append)
    checkpoints.close()
    return found, lines


def largest_file(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def test_what_comes_back_is_what_went_in(saved):
    (state, metadata), lines = restore(saved)
    assert_bit_equal(state, random_state(small_run.one_device(), 2))
    assert metadata["data"] == {"step": 2} and lines == []
    assert JointVocabulary.from_dict(metadata["vocabulary"]) == small_run.VOCABULARY


def test_a_fresh_folder_has_nothing(tmp_path):
    assert restore(tmp_path / "new") == (None, [])


def test_another_mesh_reads_the_same_bits(saved):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    (state, _), _ = restore(saved, mesh)
    assert_bit_equal(state, random_state(small_run.one_device(), 2))
    assert len(state.params["layers"]["ffn"]["up"].addressable_shards) == 8


def test_saved_from_eight_devices_read_on_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    eight = random_state(make_mesh(MeshConfig()), 5)
    checkpoints.save(eight, RUN, small_run.VOCABULARY, {})
    checkpoints.close()
    (state, _), _ = restore(tmp_path)
    assert_bit_equal(state, eight)


@pytest.mark.parametrize("item", [store.PARAMS, store.OPTIMIZER])
@pytest.mark.parametrize("damage", ["bit", "cut"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(saved, item, damage):
    file = largest_file(saved / "checkpoints" / "2" / item)
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    else:
        del content[len(content) // 2 :]
    file.write_bytes(content)
    (state, _), lines = restore(saved)
    assert_bit_equal(state, random_state(small_run.one_device(), 1))
    assert len(lines) == 1 and "checkpoints/2" in lines[0] and "falling back" in lines[0]
    assert (saved / "checkpoints" / "damaged-2").is_dir() and store.complete_steps(saved) == [1]


def test_missing_metadata_is_damage_too(saved):
    shutil.rmtree(saved / "checkpoints" / "2" / "metadata")
    (state, _), lines = restore(saved)
    assert int(state.step) == 1 and len(lines) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [(b'"checksums"', b'"checksumz"'), (b'"data": {"step": 2}', b'"data": {"step": 6}'), (b'"peak_lr"', b'"peak_ls"')],
)
def test_a_flipped_bit_in_the_metadata_is_damage_too(saved, before, after):
    file = saved / "checkpoints" / "2" / "metadata" / "metadata"
    assert file.read_bytes().count(before) == 1
    file.write_bytes(file.read_bytes().replace(before, after))
    (state, metadata), lines = restore(saved)
    assert int(state.step) == 1 and metadata["data"] == {"step": 1}
    assert len(lines) == 1 and "metadata/metadata: damaged" in lines[0]


def test_all_damaged_is_an_error(saved):
    for step in (1, 2):
        largest_file(saved / "checkpoints" / str(step) / "params").write_bytes(b"x")
    with pytest.raises(UserError, match=r"none of the checkpoints \[1, 2\] can be read"):
        restore(saved)


def test_an_unfinished_checkpoint_does_not_count(saved):
    """What a kill in the middle of writing leaves: the temporary name. It is swept away."""
    folder = saved / "checkpoints" / "2"
    folder.rename(folder.with_name("2.orbax-checkpoint-tmp"))
    (state, _), lines = restore(saved)
    assert int(state.step) == 1 and lines == []
    # Orbax sweeps in a thread of its own.
    until = time.monotonic() + 20
    while (names := sorted(path.name for path in (saved / "checkpoints").iterdir())) != ["1"]:
        assert time.monotonic() < until, names
        time.sleep(0.05)


def test_only_the_newest_are_kept(saved):
    checkpoints = Checkpoints(saved, keep=2)
    checkpoints.save(random_state(small_run.one_device(), 7), RUN, small_run.VOCABULARY, {})
    checkpoints.close()
    assert store.complete_steps(saved) == [2, 7]


def test_another_vocabulary_is_refused_in_one_line(saved):
    other = JointVocabulary.compact(text_pieces=20, image_codes=20, image_tokens=4, speech_codes=16)
    assert other.size == small_run.VOCABULARY.size
    with pytest.raises(UserError, match=r"made with vocabulary .* give another --run-dir") as caught:
        restore(saved, vocabulary=other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("dim", 64), ("norm_order", "pre"), ("rope_theta", 1e5)])
def test_another_model_is_refused_in_one_line(saved, key, value):
    with pytest.raises(UserError, match=f"made with model.{key} = "):
        restore(saved, run=small_run.changed(RUN, **{f"model__{key}": value}))


def test_what_only_changes_speed_is_accepted(saved):
    run = small_run.changed(RUN, model__remat="full", model__scan_layers=False, optimizer__peak_lr=1.0)
    (state, _), _ = restore(saved, run=run)
    assert int(state.step) == 2


def test_an_unknown_layout_is_refused(saved, monkeypatch):
    monkeypatch.setattr(store, "LAYOUT_VERSION", 99)
    with pytest.raises(UserError, match="layout version 1 is unknown"):
        restore(saved)


def test_a_full_disk_is_one_line_and_spares_the_older_checkpoint(saved):
    checkpoints = Checkpoints(saved, keep=2)
    refused = r"checkpoint of step 3 could not be written .* of step 2 is intact"
    with full_disk(20_000), pytest.raises(UserError, match=refused) as caught:
        checkpoints.save(random_state(small_run.one_device(), 3), RUN, small_run.VOCABULARY, {})
        checkpoints.wait()
    assert "\n" not in str(caught.value)
    assert [path.name for path in (saved / "checkpoints").glob("3*")] == []
    (state, _), lines = restore(saved)
    assert_bit_equal(state, random_state(small_run.one_device(), 2))
    assert lines == []


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_checksums_are_those_of_any_placement_and_see_any_change(dtype):
    host = np.random.default_rng(0).integers(0, 100, size=(8, 6)).astype(dtype)
    mesh = make_mesh(MeshConfig())
    split = jax.device_put(host, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp")))
    expected = store.checksums({"x": jnp.asarray(host)})
    assert store.checksums({"x": split}) == expected
    assert int(jax.jit(store._device_checksum)(split)) == expected["x"]
    parts = store.checksum(host[:3]) + store.checksum(host[3:], first=3 * host.shape[1])
    assert parts % 2**32 == expected["x"]
    swapped = host.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert store.checksums({"x": jnp.asarray(swapped)}) != expected
