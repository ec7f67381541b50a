"""Published VQGAN checkpoints: every kind of file gives the same codec, and what is wrong with one is named."""

import json
import shutil
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import yaml
from vqgan_golden import TINY, pictures, published_keys, random_params, write_golden

from aromni_jax.codecs import ImageCodec, folder, vqgan_files, vqgan_weights
from aromni_jax.codecs.vqgan import VQGANConfig
from aromni_jax.errors import UserError

PARAMS = random_params(TINY)
IMAGES = pictures(3, TINY)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """vqgan.yaml and model.safetensors of a tiny network."""
    path = tmp_path_factory.mktemp("published")
    vqgan_files.write_published(path, TINY, PARAMS)
    return path


@pytest.fixture
def copied(published, tmp_path):
    return shutil.copytree(published, tmp_path / "tokenizer")


def _weights(path):
    return safetensors.numpy.load_file(path / "model.safetensors")


def _write_hf(path, weights, config=TINY, **changes):
    """As transformers saves a Chameleon: two files, the codec's tensors among others, in both."""
    path.mkdir(exist_ok=True)
    values = {
        "embed_dim": config.embed_dim,
        "num_embeddings": config.n_embed,
        "double_latent": False,
        "latent_channels": config.z_channels,
        "resolution": config.resolution,
        "base_channels": config.ch,
        "channel_multiplier": list(config.ch_mult),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": list(config.attn_resolutions),
        **changes,
    }
    (path / "config.json").write_text(json.dumps({"model_type": "chameleon", "vq_config": values}))
    part = {"model.vqmodel." + name: value for name, value in weights.items() if not name.startswith("decoder.")}
    names = sorted(part)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in shards.items():
        safetensors.numpy.save_file(
            {name: part[name] for name in inside} | {f"lm_head.{file}": np.ones(2, np.float32)}, path / file
        )
    places = {name: file for file, inside in shards.items() for name in inside}
    places |= {"lm_head.weight": "c.safetensors"}  # a file that is not there: nobody opens it
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return path


def test_names_and_shapes_of_the_published_checkpoint():
    rows = vqgan_weights.table(VQGANConfig())
    assert {row.key: row.shape for row in rows} == published_keys()
    assert len(rows) == len({row.path for row in rows}) == 293
    parameters = sum(int(np.prod(row.shape)) for row in rows)
    decoder = sum(int(np.prod(row.shape)) for row in rows if row.key.startswith("decoder."))
    assert (parameters, decoder) == (68_718_467, 39_294_851)


def test_a_full_size_ckpt(tmp_path):
    """The published names and shapes in a PyTorch file; each tensor one number repeated, so that the file is small."""
    torch = pytest.importorskip("torch")
    keys = published_keys()
    tensors = {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(keys.items())}
    tensors["loss.discriminator.main.0.weight"] = torch.zeros(3)
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "vqgan.ckpt")
    ddconfig = {
        "double_z": False,
        "z_channels": 256,
        "resolution": 512,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"embed_dim": 256, "n_embed": 8192, "ddconfig": ddconfig, "lossconfig": {"target": "x"}}
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"target": "x", "params": params}}))
    codec = ImageCodec.load(tmp_path)
    assert codec.config == VQGANConfig()
    assert (codec.num_codes, codec.tokens_per_image) == (8192, 1024)
    flat = folder.flatten(codec.params)
    numbers = {name: number for number, name in enumerate(keys)}
    for row in vqgan_weights.table(codec.config):
        assert flat[row.path].flat[0] == numbers[row.key]
    assert flat["net/encoder/down/2/block/0/conv1/kernel"].shape == (3, 3, 128, 256)


def test_every_kind_of_file_is_the_same_codec(published, tmp_path):
    codec = ImageCodec.load(published)
    assert codec.config == TINY
    codec.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "codec.json").read_text())["fingerprint"] == codec.fingerprint
    kinds = {"ours": tmp_path / "ours"}
    torch = pytest.importorskip("torch")
    kinds["ckpt"] = tmp_path / "model" / "tokenizer"
    kinds["ckpt"].mkdir(parents=True)
    shutil.copy(published / "vqgan.yaml", kinds["ckpt"])
    tensors = {name: torch.from_numpy(value) for name, value in _weights(published).items()}
    torch.save({"state_dict": tensors}, kinds["ckpt"] / "vqgan.ckpt")
    kinds["parent"] = tmp_path / "model"
    codes = codec.encode(IMAGES)
    for kind, path in kinds.items():
        other = ImageCodec.load(path)
        assert (other.config, other.fingerprint) == (codec.config, codec.fingerprint), kind
        jax.tree.map(np.testing.assert_array_equal, other.params, codec.params)
        np.testing.assert_array_equal(other.encode(IMAGES), codes)


def test_our_own_small_codec_can_be_saved(tmp_path):
    codec = ImageCodec.load("numbers")
    assert codec.fingerprint == "43f6c058c0dc0cd6"  # data sets name it
    codec.save(tmp_path)
    assert ImageCodec.load(tmp_path).fingerprint == codec.fingerprint


def test_the_reference_s_yaml_with_its_weights(tmp_path):
    codec = ImageCodec.load(write_golden(tmp_path))
    assert (codec.num_codes, codec.tokens_per_image, codec.config.attn_resolutions) == (128, 256, (32,))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_hugging_face_holds_the_encoder(published, tmp_path, dtype):
    weights = {name: value.astype(dtype) for name, value in _weights(published).items()}
    codec = ImageCodec.load(_write_hf(tmp_path / "hf", weights))
    assert not codec.config.has_decoder
    np.testing.assert_array_equal(codec.codebook, PARAMS["codebook"].astype(dtype).astype(np.float32))
    if dtype == np.float32:
        np.testing.assert_array_equal(codec.encode(IMAGES), ImageCodec.load(published).encode(IMAGES))
    with pytest.raises(UserError, match="cannot decode"):
        codec.decode(np.zeros((1, 64), np.int32))
    codec.save(tmp_path / "ours")
    assert ImageCodec.load(tmp_path / "ours").fingerprint == codec.fingerprint


def test_hugging_face_leaves_out_what_is_as_published(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vq_config": {"base_channels": 64, "attn_resolutions": None}}))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        ImageCodec.load(tmp_path)
    for latent in ("latent_channels", "z_channels"):  # the reference's own copy of transformers has the other name
        config = vqgan_files.parse_hf_config({"base_channels": 64, latent: 8}, tmp_path)
        assert config == VQGANConfig(ch=64, z_channels=8, has_decoder=False)


def _damage_weights(path, kind):
    weights = _weights(path)
    if kind == "missing":
        del weights["decoder.mid.attn_1.q.weight"]
    elif kind == "left over":
        weights["encoder.extra.weight"] = np.zeros(1, np.float32)
    elif kind == "shape":
        weights["quant_conv.weight"] = weights["quant_conv.weight"][:2]
    elif kind == "nan":
        weights["encoder.conv_in.bias"][0] = np.nan
    safetensors.numpy.save_file(weights, path / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "decoder.mid.attn_1.q.weight is missing"),
        ("left over", "encoder.extra.weight is not in the network"),
        ("shape", r"quant_conv.weight is \[2, 6, 1, 1\] in place of \[4, 6, 1, 1\]"),
        ("nan", "encoder.conv_in.bias holds NaN"),
    ],
)
def test_wrong_weights_are_named(copied, kind, reason):
    _damage_weights(copied, kind)
    with pytest.raises(UserError, match=reason) as caught:
        ImageCodec.load(copied)
    assert "\n" not in str(caught.value)


def test_many_wrong_weights_are_one_line(copied):
    values = yaml.safe_load((copied / "vqgan.yaml").read_text())
    values["model"]["params"]["ddconfig"]["ch"] = 64
    (copied / "vqgan.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"does not fit vqgan.yaml: .*and \d+ more$"):
        ImageCodec.load(copied)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("double_z", True, "double_z is True"),
        ("resamp_with_conv", False, "resamp_with_conv"),
        ("ch_mult", None, "does not say ch_mult"),
        ("ch_mult", 2, "list of whole numbers"),
        ("ch", "128", "whole number"),
        ("ch", 40, "multiple of 32"),
        ("out_ch", 1, "out_ch is 1"),
        (None, "model: {", "cannot read"),
        (None, "model: 3", "describes no VQGAN"),
        (None, "\x00", "cannot read"),
    ],
)
def test_a_wrong_yaml(copied, key, value, reason):
    path = copied / "vqgan.yaml"
    if key is None:
        path.write_text(value)
    else:
        values = yaml.safe_load(path.read_text())
        values["model"]["params"]["ddconfig"][key] = value
        path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=reason) as caught:
        ImageCodec.load(copied)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def _damage_folder(path, kind):
    if kind == "no weights":
        (path / "model.safetensors").unlink()
    elif kind == "cut":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-9])
    elif kind == "ckpt":
        (path / "model.safetensors").rename(path / "vqgan.ckpt")


@pytest.mark.parametrize("kind", ["no weights", "cut", "ckpt"])
def test_a_damaged_folder(copied, kind):
    if kind == "ckpt":
        pytest.importorskip("torch")
    _damage_folder(copied, kind)
    with pytest.raises(UserError) as caught:
        ImageCodec.load(copied)
    assert str(copied) in str(caught.value) and "\n" not in str(caught.value)


class Attack:
    """What pickle would run a function for."""

    def __reduce__(self):
        return print, ("this ran",)


def test_code_in_a_ckpt_is_not_run(copied, capsys):
    """What is no tensor is left out, and then missed."""
    torch = pytest.importorskip("torch")
    (copied / "model.safetensors").unlink()
    torch.save({"state_dict": {"encoder.conv_in.bias": Attack()}}, copied / "vqgan.ckpt")
    with pytest.raises(UserError, match=r"vqgan\.ckpt.*(is missing|anything but tensors|cannot read)"):
        ImageCodec.load(copied)
    assert "this ran" not in capsys.readouterr().out


def test_a_ckpt_without_pytorch(copied, monkeypatch):
    (copied / "model.safetensors").rename(copied / "vqgan.ckpt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'aromni_jax\[torch\]'"):
        ImageCodec.load(copied)


@pytest.mark.parametrize(
    "kind", ["language model", "no codec weights", "no index", "missing file", "path out", "attention"]
)
def test_a_wrong_hugging_face_folder(published, tmp_path, kind):
    path = _write_hf(tmp_path / "hf", _weights(published), **({"attn_type": "linear"} if kind == "attention" else {}))
    index = path / "model.safetensors.index.json"
    if kind == "language model":
        (path / "config.json").write_text('{"model_type": "llama"}')
    elif kind == "no codec weights":
        index.write_text('{"weight_map": {"lm_head.weight": "a.safetensors"}}')
    elif kind == "no index":
        index.unlink()
    elif kind == "missing file":
        (path / "b.safetensors").unlink()
    elif kind == "path out":
        places = json.loads(index.read_text())["weight_map"]
        places["model.vqmodel.quant_conv.bias"] = "../a.safetensors"
        shutil.copy(path / "a.safetensors", tmp_path)
        index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError) as caught:
        ImageCodec.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_our_folder_goes_before_others(copied):
    (copied / "codec.json").write_text('{"kind": "image"}')
    with pytest.raises(UserError, match=r"codec\.json"):
        ImageCodec.load(copied)


def test_an_unknown_architecture(tmp_path):
    ImageCodec.load("numbers").save(tmp_path)
    card = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps({**card, "architecture": "diffusion"}))
    with pytest.raises(UserError, match="unknown architecture diffusion"):
        ImageCodec.load(tmp_path)
