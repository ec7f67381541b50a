"""Any format to any other and back, bit for bit, whole or not at all."""

import dataclasses
import json
import os
import shutil
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from aromni_jax import store
from aromni_jax.config import ModelConfig
from aromni_jax.convert import assets, convert, load_model, open_source, save_model
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


@pytest.mark.parametrize("to", ["orbax", "hf", "meta"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(tmp_path, folder, to, number):
    """Nor a writer in another thread that goes on after the folder is gone."""
    if to == "meta":
        pytest.importorskip("torch")
    before, sent = signal.getsignal(number), []

    def send(count):
        if not sent:
            sent.append(os.kill(os.getpid(), number))

    with open_source(folder) as source, pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "target", to, progress=send)
    time.sleep(0.3)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("to", ["orbax", "hf", "meta"])
@pytest.mark.parametrize("part", ["weights", "extra"])
def test_a_flipped_bit_is_found_in_every_format(tmp_path, to, part):
    """Weights and what travels with them, tensor by tensor, when they are read."""
    if to == "meta":
        pytest.importorskip("torch")
    if part == "weights":
        save_model(tmp_path / "model", lively(CONFIG), CONFIG, SMALL)
        step(tmp_path / "model", tmp_path / "made", to)
        files = {"orbax": "params/layers.ffn.up/0.0.0", "hf": "model.safetensors"}
    else:
        step(FOLDER / "mha", tmp_path / "made", to, vocabulary=VOCABULARY)
        files = {"hf": "model.safetensors"}
    name = files.get(to, "models/7b/consolidated.pth" if part == "weights" else "models/7b/aromni_extra.safetensors")
    file = tmp_path / "made" / ("aromni_extra.safetensors" if (to, part) == ("orbax", "extra") else name)
    data = bytearray(file.read_bytes())
    at = data.index(b"PK\x01\x02") - 5000 if file.suffix == ".pth" else len(data) - 9
    data[at] ^= 4
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged|cannot read") as caught:
        step(tmp_path / "made", tmp_path / "copy", "hf")
    assert "\n" not in str(caught.value) and not (tmp_path / "copy").exists()


def test_extras_that_are_gone_are_missed(tmp_path):
    step(FOLDER / "mha", tmp_path / "made", "orbax", vocabulary=VOCABULARY)
    (tmp_path / "made" / "aromni_extra.safetensors").unlink()
    with pytest.raises(store.Damaged, match=r"aromni_extra\.safetensors: has not the .* bytes that .* notes"):
        open_source(tmp_path / "made")


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


# -- four ranks, made by hand ------------------------------------------------------------------------

HEADS, KV_HEADS, WIDTH, RANKS = 8, 4, 4, 4
ALONG_OUTPUTS = ("wq", "wk", "wv", "w1", "w3", "output")
ALONG_INPUTS = ("wo", "w2", "tok_embeddings")


def by_hand(folder, skew=0.0):
    """A checkpoint of four model-parallel ranks by SPEC 3.4 and 3.5, without this project's writer.

    Returns its whole tensors, the QK-norm vectors of all ranks, and what each rank holds.
    """
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    dim, ffn = CONFIG.dim, 256
    shapes = {"tok_embeddings": (SMALL.size, dim), "output": (SMALL.size, dim), "norm": (dim,)}
    for layer in range(2):
        sizes = {"wq": HEADS, "wk": KV_HEADS, "wv": KV_HEADS}
        shapes |= {f"layers.{layer}.attention.{name}": (heads * WIDTH, dim) for name, heads in sizes.items()}
        shapes |= {f"layers.{layer}.attention.wo": (dim, HEADS * WIDTH), f"layers.{layer}.feed_forward.w2": (dim, ffn)}
        shapes |= {f"layers.{layer}.feed_forward.{name}": (ffn, dim) for name in ("w1", "w3")}
        shapes |= {f"layers.{layer}.{name}": (dim,) for name in ("attention_norm", "ffn_norm")}
    whole = {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    norms = {
        f"layers.{layer}.attention.{name}.{part}": rng.standard_normal((RANKS, WIDTH)).astype(np.float32)
        for layer in range(2)
        for name in ("q_normalization", "k_normalization")
        for part in ("weight", "bias")
    }
    inner = folder / "models" / "30b"
    inner.mkdir(parents=True)
    shards = []
    for rank in range(RANKS):
        shard = {name: vectors[rank] for name, vectors in norms.items()}
        for name, tensor in whole.items():
            kind = name.split(".")[-2]
            if kind in ALONG_OUTPUTS:
                shard[name] = np.split(tensor, RANKS, 0)[rank]
            elif kind in ALONG_INPUTS:
                shard[name] = np.split(tensor, RANKS, 1)[rank]
            else:
                shard[name] = tensor + np.float32(skew * rank)
        state = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in shard.items()}
        torch.save({**state, "rope.freqs": None}, inner / f"consolidated.{rank:02}.pth")
        shards.append(shard)
    params = {
        "dim": dim,
        "n_layers": 2,
        "n_heads": HEADS,
        "n_kv_heads": KV_HEADS,
        "multiple_of": 256,
        "swin_norm": True,
    }
    (inner / "params.json").write_text(json.dumps({"model": params | {"qk_normalization": True, "vocab_size": -1}}))
    (inner / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": RANKS}))
    return whole, norms, shards


def test_four_ranks_made_by_hand_are_joined(tmp_path):
    """Every tensor whole again, every head with the QK-norm vector of its rank; and split as it was."""
    torch = pytest.importorskip("torch")
    whole, norms, shards = by_hand(tmp_path / "meta")
    upstream = tensors(step(tmp_path / "meta", tmp_path / "hf", "hf", vocabulary=SMALL))
    names = {piece.name("meta"): piece for piece in pieces(open_source(tmp_path / "hf").config)}
    for name, tensor in whole.items():
        found = upstream[names[name].name("hf")]
        if name.split(".")[-2] in ("wq", "wk"):
            tensor = tensor.reshape(-1, WIDTH // 2, 2, CONFIG.dim).swapaxes(1, 2).reshape(tensor.shape)
        np.testing.assert_array_equal(found, tensor, err_msg=name)
    for name, vectors in norms.items():
        heads = HEADS if ".q_norm" in name else KV_HEADS
        halves = np.concatenate([vectors[:, 0::2], vectors[:, 1::2]], axis=1)
        np.testing.assert_array_equal(upstream[names[name].name("hf")], np.repeat(halves, heads // RANKS, axis=0))
    assert open_source(tmp_path / "hf").config.qk_norm_groups == RANKS
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["aromni"]["model"]["qk_norm_groups"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    assert open_source(tmp_path / "hf").config.qk_norm_groups == RANKS, "without a note the tensors tell"
    again = step(tmp_path / "hf", tmp_path / "again", "meta") / "models" / "7b"
    for rank, shard in enumerate(shards):
        state = torch.load(again / f"consolidated.{rank:02}.pth", weights_only=True)
        assert state.keys() - {"rope.freqs"} == shard.keys()
        for name, tensor in shard.items():
            np.testing.assert_array_equal(state[name].numpy(), tensor, err_msg=name)


def test_norms_that_differ_between_ranks_are_averaged_and_said_once(tmp_path):
    whole, _, _ = by_hand(tmp_path / "meta", skew=0.5)
    with open_source(tmp_path / "meta", SMALL) as source:
        convert(source, tmp_path / "hf", "hf")
        assert sum("their mean is used" in warning for warning in source.warnings) == 1
    found = tensors(tmp_path / "hf")["model.norm.weight"]
    np.testing.assert_allclose(found, whole["norm.weight"] + 0.75, rtol=1e-6)


def test_sizes_that_ranks_do_not_divide(tmp_path):
    config = dataclasses.replace(CONFIG, ffn_dim=22)
    save_model(tmp_path / "model", lively(config, shared_norms=False), config, SMALL)
    with pytest.raises(UserError, match=r"no number of ranks up to 8 fits the model's sizes\. Convert to hf"):
        step(tmp_path / "model", tmp_path / "meta", "meta")


# -- what travels beside the weights -----------------------------------------------------------------


def test_assets_and_the_image_codec_of_a_meta_folder(tmp_path):
    """Its VQGAN's encoder goes into the HF checkpoint; tokenizer and settings go through every format and back."""
    torch = pytest.importorskip("torch")
    by_hand(tmp_path / "meta")
    tokenizer = tmp_path / "meta" / "tokenizer"
    tokenizer.mkdir()
    state = {"encoder.conv_in.weight": torch.ones(2, 3), "decoder.conv_in.weight": torch.ones(1)}
    torch.save({"state_dict": state}, tokenizer / "vqgan.ckpt")
    settings = "{n_embed: 16, embed_dim: 8, ddconfig: {ch: 32, ch_mult: [1], z_channels: 8, double_z: false}}"
    (tokenizer / "vqgan.yaml").write_text(f"model: {{params: {settings}}}")
    (tokenizer / "text_tokenizer.json").write_text(json.dumps({"model": {"vocab": {"<s>": 0, "<image>": 30}}}))
    (tokenizer / "LICENSE").write_text("research only")
    with open_source(tmp_path / "meta", SMALL) as source:
        convert(source, tmp_path / "hf", "hf")
        assert any("vqgan.ckpt stays behind" in warning for warning in source.warnings)
    found = tensors(tmp_path / "hf")
    assert [name for name in found if "vqmodel" in name] == ["model.vqmodel.encoder.conv_in.weight"]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["vq_config"]["num_embeddings"] == 16 and config["vq_config"]["latent_channels"] == 8
    assert (tmp_path / "hf" / "LICENSE").read_text() == "research only"
    assert not (tmp_path / "hf" / "vqgan.ckpt").exists()
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["bos_token_id"] == SMALL.bos
    model = step(tmp_path / "meta", tmp_path / "model", "orbax", vocabulary=SMALL)
    back = step(model, tmp_path / "back", "meta") / "tokenizer"
    for name in ("vqgan.ckpt", "vqgan.yaml", "text_tokenizer.json", "LICENSE"):
        assert (back / name).read_bytes() == (tokenizer / name).read_bytes(), name


def test_the_image_token_is_renamed_between_the_two_projects(tmp_path):
    """SPEC 1.1: Hugging Face's <image> is Meta's <reserved08707>, in the official vocabulary only."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({"model": {"vocab": {"<image>": 8711}}, "added_tokens": []}))
    meta = assets.renamed_tokenizer(file, to_hf=False)
    assert json.loads(meta)["model"]["vocab"] == {"<reserved08707>": 8711}
    file.write_text(meta)
    assert json.loads(assets.renamed_tokenizer(file, to_hf=True))["model"]["vocab"] == {"<image>": 8711}
    file.write_text(json.dumps({"model": {"vocab": {"<image>": 30}}}))
    assert assets.renamed_tokenizer(file, to_hf=False) == file.read_text()


def test_what_a_format_cannot_say_is_refused_before_anything_is_written(tmp_path):
    config = dataclasses.replace(CONFIG, qk_norm_eps=0.5)
    save_model(tmp_path / "model", lively(config), config, SMALL)
    for to in ("hf", "hf-reference", "meta"):
        with pytest.raises(UserError, match=r"qk_norm_eps is 0\.5; in the layout \S+ it is always 1e-05"):
            step(tmp_path / "model", tmp_path / "out", to)


def test_no_path_of_the_training_machine_is_exported(tmp_path):
    recipe = {"data": {"path": "/home/someone/data", "seed": 1}, "train": {"init_from": "/home/x", "steps": 2}}
    save_model(tmp_path / "model", lively(CONFIG), CONFIG, SMALL, {"recipe": recipe})
    step(tmp_path / "model", tmp_path / "hf", "hf")
    text = (tmp_path / "hf" / "config.json").read_text()
    assert "/home" not in text and '"steps": 2' in text


def test_trained_on_in_transformers_and_brought_back(tmp_path):
    """`save_pretrained` keeps our note of what the weights were; the weights themselves have the last word."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    upstream = step(FOLDER / "mha", tmp_path / "hf", "hf", vocabulary=VOCABULARY)
    model = transformers.ChameleonForConditionalGeneration.from_pretrained(upstream)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_norm.weight[0] += 1.0
    model.save_pretrained(tmp_path / "tuned")
    loaded = load_model(tmp_path / "tuned", VOCABULARY)
    assert loaded.config.qk_norm_groups == 4, "one of the four heads has gone its own way"
    ids = np.arange(5)[None]
    theirs = model.lm_head(model.model(input_ids=torch.from_numpy(ids)).last_hidden_state).detach().numpy()
    np.testing.assert_allclose(loaded(ids)[0], theirs, atol=1e-4)
