"""Any format to any other and back, bit for bit, whole or not at all."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from aromni_jax import store
from aromni_jax.config import ModelConfig
from aromni_jax.convert import convert, load_model, open_source, save_model
from aromni_jax.convert.layouts import pieces
from aromni_jax.errors import UserError
from aromni_jax.model import flatten, nest, parameter_table
from aromni_jax.vocabulary import JointVocabulary
from tests.full_disk import full_disk
from tests.golden_models import FOLDER, NAMES, VOCABULARY

SMALL = JointVocabulary.compact(text_pieces=24, image_codes=16, image_tokens=4, speech_codes=16)
CONFIG = ModelConfig(
    vocab_size=SMALL.size, dim=32, layers=3, heads=8, kv_heads=4, head_dim=4, ffn_dim=20, norm_order="swin",
    perceptual_dim=5, norm_eps=1e-6, max_positions=99, attention="blocked",
)  # fmt: skip


def lively(config, shared_norms=True, seed=0):
    rng = np.random.default_rng(seed)
    flat = {}
    for path, spec in parameter_table(config).items():
        array = rng.standard_normal(spec.shape).astype(np.float32)
        if shared_norms and "_norm" in path and spec.axes[-1] == "head_dim":
            array = np.broadcast_to(array[:, :1], spec.shape)
        flat[path] = jnp.asarray(array)
    return nest(flat)


def tensors(folder):
    """Every tensor of a folder's safetensors files, by the library."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(file)
    return found


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert (array.dtype, array.shape) == (second[name].dtype, second[name].shape), name
        assert array.tobytes() == second[name].tobytes(), name


@pytest.fixture
def folder(tmp_path):
    """A model of ours with everything that travels: the projection, metadata, a vocabulary of its own."""
    save_model(tmp_path / "model", lively(CONFIG), CONFIG, SMALL, {"world": "numbers", "note": "kept"})
    return tmp_path / "model"


def step(source, target, to, **options):
    with open_source(source, options.pop("vocabulary", None)) as opened:
        convert(opened, target, to, **options)
    return target


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_of_the_reference_checkpoints(tmp_path, name):
    """HF-reference -> orbax -> HF-upstream -> Meta -> HF-reference: weights, and the VQ model where there is one."""
    pytest.importorskip("torch")
    orbax = step(FOLDER / name, tmp_path / "orbax", "orbax", vocabulary=VOCABULARY)
    upstream = step(orbax, tmp_path / "hf", "hf", shard_bytes=200_000)
    meta = step(upstream, tmp_path / "meta", "meta")
    again = step(meta, tmp_path / "again", "hf-reference")
    assert [open_source(path).layout for path in (orbax, upstream, meta, again)] == [
        "aromni", "hf", "meta", "hf-reference",
    ]  # fmt: skip
    before = tensors(FOLDER / name)
    assert_same(tensors(again), before)
    assert any("vqmodel" in tensor for tensor in before) == (name == "mha")
    old, new = (json.loads((path / "config.json").read_text()) for path in (FOLDER / name, again))
    for key in set(old) - {"transformers_version", "torch_dtype"}:
        assert new[key] == old[key], key


def test_round_trip_of_what_only_we_have(tmp_path, folder):
    """The projection, eps, backend, metadata and vocabulary come back from formats that have no place for them."""
    pytest.importorskip("torch")
    before = load_model(folder)
    upstream = step(folder, tmp_path / "hf", "hf")
    meta = step(upstream, tmp_path / "meta", "meta")
    reference = step(meta, tmp_path / "reference", "hf-reference")
    last = step(reference, tmp_path / "last", "orbax")
    for path in (upstream, meta, reference, last):
        after = load_model(path)
        assert after.config == CONFIG and after.vocabulary == SMALL
        assert after.metadata["note"] == "kept" and after.metadata["world"] == "numbers"
        assert_same(
            {k: np.asarray(v) for k, v in flatten(after.params).items()},
            {k: np.asarray(v) for k, v in flatten(before.params).items()},
        )
    assert (upstream / "aromni_extra.safetensors").is_file()
    assert not (last / "aromni_extra.safetensors").exists(), "a model folder has it among its parameters"


def test_head_norms_of_their_own_come_back_from_four_ranks(tmp_path):
    """The 34B way (SPEC 3.4): as many Meta shards as there are different vectors, joined again."""
    pytest.importorskip("torch")
    params = lively(CONFIG)
    norms = params["layers"]["attention"]
    for name, per_rank in (("query_norm", 2), ("key_norm", 1)):
        for part in ("scale", "bias"):
            four = np.random.default_rng(5).standard_normal((3, 4, 4)).astype(np.float32)
            norms[name][part] = jnp.asarray(np.repeat(four, per_rank, axis=1))
    save_model(tmp_path / "model", params, CONFIG, SMALL)
    meta = step(tmp_path / "model", tmp_path / "meta", "meta")
    inner = meta / "models" / "7b"
    shards = sorted(path.name for path in inner.glob("*.pth"))
    assert shards == [f"consolidated.0{rank}.pth" for rank in range(4)]
    assert json.loads((inner / "consolidate_params.json").read_text()) == {"model_parallel_size": 4}
    again = step(meta, tmp_path / "again", "orbax")
    assert_same(
        {k: np.asarray(v) for k, v in flatten(load_model(again).params).items()},
        {k: np.asarray(v) for k, v in flatten(params).items()},
    )
    with pytest.raises(UserError, match="hf-reference holds 1; convert to hf or meta"):
        step(meta, tmp_path / "reference", "hf-reference")
    assert not (tmp_path / "reference").exists()


def test_shards_of_four_ranks_are_joined_as_meta_splits_them(tmp_path):
    """Column-parallel weights along the outputs, row-parallel ones along the inputs, the embedding along its width."""
    torch = pytest.importorskip("torch")
    meta = step_meta(tmp_path, ranks=4)
    first = torch.load(meta / "models" / "7b" / "consolidated.00.pth", weights_only=True)
    assert first["layers.0.attention.wq.weight"].shape == (8, 32)
    assert first["layers.0.attention.wo.weight"].shape == (32, 8)
    assert first["layers.0.feed_forward.w2.weight"].shape == (32, 5)
    assert first["tok_embeddings.weight"].shape == (SMALL.size, 8)
    assert first["output.weight"].shape == (SMALL.size // 4, 32)
    assert first["layers.0.attention_norm.weight"].shape == (32,)
    assert first["layers.0.attention.q_normalization.weight"].shape == (4,)


def step_meta(tmp_path, ranks):
    params = lively(CONFIG)
    for name in ("query_norm", "key_norm"):
        for part in ("scale", "bias"):
            shape = params["layers"]["attention"][name][part].shape
            values = np.random.default_rng(1).standard_normal((shape[0], ranks, shape[2])).astype(np.float32)
            params["layers"]["attention"][name][part] = jnp.asarray(np.repeat(values, shape[1] // ranks, axis=1))
    save_model(tmp_path / "model4", params, CONFIG, SMALL)
    return step(tmp_path / "model4", tmp_path / "meta4", "meta")


def test_dtype_is_as_stored_unless_asked_for(tmp_path, folder):
    step(folder, tmp_path / "half", "hf-reference", dtype="bfloat16")
    half = open_source(tmp_path / "half")
    assert {dtype.name for _, dtype in half.planned()} == {"bfloat16"} and half.config.param_dtype == "bfloat16"
    assert half.dtype(pieces(CONFIG, training_only=True)[0]).name == "float32", "training goes on in full"
    step(tmp_path / "half", tmp_path / "same", "orbax")
    assert {dtype.name for _, dtype in open_source(tmp_path / "same").planned()} == {"bfloat16"}


def test_shards_are_no_larger_than_asked_and_indexed(tmp_path, folder):
    step(folder, tmp_path / "hf", "hf", shard_bytes=10_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert len(files) > 3 and {path.name for path in files} == set(index["weight_map"].values())
    assert all(path.stat().st_size < 10_000 + 4096 for path in files)
    total = sum(array.nbytes for path in files for array in safetensors.numpy.load_file(path).values())
    assert index["metadata"]["total_size"] == total


def test_progress_counts_every_byte(tmp_path, folder):
    for to in ("orbax", "hf"):
        seen = []
        with open_source(folder) as source:
            convert(source, tmp_path / to, to, progress=seen.append)
            extra = sum(4 * np.prod(piece.spec.shape) for piece in pieces(CONFIG, training_only=True))
            assert sum(seen) == source.bytes() + (extra if to == "orbax" else 0)


def test_nothing_is_overwritten(tmp_path, folder):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already; give another name or remove it"):
        step(folder, tmp_path / "there", "hf")
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("to", ["orbax", "hf", "hf-reference", "meta"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, folder, to):
    if to == "meta":
        pytest.importorskip("torch")
    before = sorted(path.name for path in tmp_path.iterdir())
    with full_disk(700), pytest.raises(UserError, match="the model could not be written") as caught:
        step(folder, tmp_path / "target", to)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_interrupt_leaves_nothing_behind(tmp_path, folder):
    def interrupt(count):
        raise KeyboardInterrupt

    with open_source(folder) as source, pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "target", "hf", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_flipped_bit_is_found_in_every_format_of_ours(tmp_path, folder):
    """Orbax folder and Hugging Face folder alike: the manifest's checksums, tensor by tensor."""
    step(folder, tmp_path / "hf", "hf")
    for path in (tmp_path / "hf" / "model.safetensors", folder / "params" / "layers.ffn.up" / "0.0.0"):
        data = bytearray(path.read_bytes())
        data[-9] ^= 4
        path.write_bytes(data)
    for source in (folder, tmp_path / "hf"):
        with pytest.raises(store.Damaged, match="damaged") as caught:
            load_model(source)
        assert "\n" not in str(caught.value)
        with pytest.raises(store.Damaged, match="damaged"):
            step(source, tmp_path / "copy", "hf-reference")
        assert not (tmp_path / "copy").exists()


def test_a_file_of_another_size_than_the_manifest_notes(tmp_path, folder):
    step(folder, tmp_path / "hf", "hf")
    file = tmp_path / "hf" / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(store.Damaged, match=r"model\.safetensors: has not the .* bytes that .* notes"):
        load_model(tmp_path / "hf")


def test_a_run_with_large_chunks_is_read_parameter_by_parameter(tmp_path, folder, monkeypatch):
    """As training writes them: all layers in one chunk, which must not be read once per layer."""
    from aromni_jax.convert import model_folder

    monkeypatch.setattr(model_folder, "_CHUNK_BYTES", 100)
    source = open_source(folder)
    paths = [piece.path for piece, _ in source.planned()]
    assert paths == sorted(paths, key=paths.index), "one parameter after the other"
    shutil.rmtree(tmp_path / "hf", ignore_errors=True)
    step(folder, tmp_path / "hf", "hf")
    assert_same(
        {k: np.asarray(v) for k, v in flatten(load_model(tmp_path / "hf").params).items()},
        {k: np.asarray(v) for k, v in flatten(load_model(folder).params).items()},
    )
