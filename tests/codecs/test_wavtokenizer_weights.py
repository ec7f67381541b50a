"""Published weights: the key list of the real checkpoint, and every way in which files can be wrong."""

import argparse
import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

from aromni_jax.codecs import SpeechCodec, vq
from aromni_jax.codecs.tensor_files import Tensors
from aromni_jax.codecs.wavtokenizer import WavTokenizer, WavTokenizerConfig
from aromni_jax.codecs.wavtokenizer_weights import import_params, table
from aromni_jax.errors import UserError

DATA = pathlib.Path(__file__).parents[1] / "data" / "golden"
FOLDER = DATA / "g6_speech_codec"
PUBLISHED = {
    name: tuple(json.loads(shape))
    for name, shape in (line.split("\t") for line in (DATA / "keys" / "wavtokenizer_keys.txt").read_text().splitlines())
}


def test_the_key_list_of_the_published_checkpoint():
    names = [item for row in table(WavTokenizerConfig()) for item in row.sources.items()]
    assert len(names) == len(PUBLISHED) == 227
    assert dict(names) == PUBLISHED


FAMILY = (
    WavTokenizerConfig(blocks=2),  # else as published; all its blocks are in the list of names
    WavTokenizerConfig(strides=(2, 4, 5, 8), window=1280, blocks=1),  # 75 codes per second
    WavTokenizerConfig(strides=(3, 4), window=48, channels=8, embed=24, dim=96, hidden=100, blocks=2, conditions=1),
)


@pytest.mark.parametrize("config", FAMILY, ids=lambda config: f"hop {config.hop}")
def test_every_array_of_the_network_comes_from_one_row(config):
    """Every array is one number seen through its whole shape."""
    network = WavTokenizer(config)
    paths = [row.path for row in table(config) if row.path]
    assert len(paths) == len(set(paths))
    sources = {name: shape for row in table(config) for name, shape in row.sources.items()}
    state = {name: np.broadcast_to(np.float32(1), shape) for name, shape in sources.items()}
    state["head.istft.window"] = np.hanning(config.window + 1)[:-1]
    found = import_params(tensors(state), config)
    assert found["codebook"].shape == (config.codes, config.embed)
    assert _shapes(found["net"]) == _shapes(jax.eval_shape(lambda: vq.init(network.build, 0)))


def _shapes(tree):
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def tensors(state):
    """As a reader of files gives them."""
    shapes = {name: array.shape for name, array in state.items()}
    return Tensors(FOLDER, shapes, lambda name: state[name].astype(np.float32))


def full_size_state():
    """Every published array as one number seen through its whole shape, and what else such checkpoints hold."""
    state = {name: np.broadcast_to(np.float32(0.01), shape) for name, shape in PUBLISHED.items()}
    hann = np.hanning(2401)[:-1].astype(np.float32)
    return {**state, "head.istft.window": hann}


def published_yaml():
    description = yaml.safe_load((FOLDER / "config.yaml").read_text())
    arguments = description["model"]["init_args"]
    arguments["feature_extractor"]["init_args"]["vq_bins"] = 4096
    sizes = {"input_channels": 512, "dim": 768, "intermediate_dim": 2304, "num_layers": 12}
    arguments["backbone"]["init_args"] |= sizes
    arguments["head"]["init_args"]["dim"] = 768
    return {"seed_everything": 3407, "trainer": {"max_steps": 20_000_000}, **description}


def test_a_lightning_checkpoint_of_full_size(tmp_path):
    torch = pytest.importorskip("torch")
    state = {
        name: torch.from_numpy(np.array(array.flat[0])).expand(array.shape) for name, array in full_size_state().items()
    }
    state["head.istft.window"] = torch.hann_window(2400)
    state["feature_extractor.encodec.decoder.model.0.conv.conv.bias"] = torch.zeros(512)
    state["multiperioddisc.discriminators.0.convs.0.bias"] = torch.zeros(32)
    (tmp_path / "wavtokenizer.yaml").write_text(yaml.safe_dump(published_yaml()))
    options = {"feature_extractor": argparse.Namespace(bins=4096), "folder": pathlib.PurePosixPath("x")}
    torch.save({"state_dict": state, "epoch": 1, "hyper_parameters": options}, tmp_path / "small_600.ckpt")
    codec = SpeechCodec.load(tmp_path)
    assert codec.config == WavTokenizerConfig()
    assert (codec.num_codes, codec.hop, codec.codebook.shape) == (4096, 600, (4096, 512))
    kernel = codec.params["net"]["encoder"]["stages"]["3"]["down"]["conv"]["kernel"]
    assert kernel.shape == (12, 256, 512)
    np.testing.assert_allclose(kernel, 0.01 / np.sqrt(12 * 256), rtol=1e-5)
    np.testing.assert_allclose(codec.params["net"]["encoder"]["lstm"]["1"]["bias"], 0.02, rtol=1e-6)


def test_files_of_a_newer_pytorch_and_of_half_precision():
    """The names of `torch.nn.utils.parametrizations.weight_norm`; a window rounded to float16 is still Hann's."""
    config = SpeechCodec.load(FOLDER).config
    state = safetensors.numpy.load_file(FOLDER / "model.safetensors")
    wanted = import_params(tensors(state), config)
    newer = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    renamed = {name.removesuffix(name[-8:]) + newer.get(name[-8:], name[-8:]): x for name, x in state.items()}
    assert sum("original" in name for name in renamed) >= 36
    jax.tree.map(np.testing.assert_array_equal, import_params(tensors(renamed), config), wanted)
    half = import_params(tensors({name: x.astype(np.float16) for name, x in state.items()}), config)
    np.testing.assert_allclose(half["codebook"], wanted["codebook"], rtol=1e-3)
    symmetric = {**state, "head.istft.window": np.hanning(config.window)}
    with pytest.raises(UserError, match="not a periodic Hann window"):
        import_params(tensors(symmetric), config)


def test_weight_norm_is_folded():
    config = WavTokenizerConfig()
    state = full_size_state()
    name = "feature_extractor.encodec.encoder.model.0.conv.conv."
    direction = np.zeros((32, 1, 7), np.float32)
    direction[:, 0, :3] = [1, 2, 2]
    state |= {f"{name}weight_v": direction, f"{name}weight_g": np.full((32, 1, 1), 6, np.float32)}
    kernel = import_params(tensors(state), config)["net"]["encoder"]["first"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel[:, 0, 0], [2, 4, 4, 0, 0, 0, 0], atol=1e-6)


def golden_state():
    return safetensors.numpy.load_file(FOLDER / "model.safetensors")


def folder_with(tmp_path, state=None, description="config.json", change=None):
    values = yaml.safe_load((FOLDER / description).read_text())
    if change:
        change(values)
    (tmp_path / description).write_text(json.dumps(values))
    if state is not None:
        safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    return tmp_path


def test_missing_unknown_and_misshapen_weights_are_named(tmp_path):
    name = "backbone.convnext.1.pwconv1.weight"
    config = SpeechCodec.load(FOLDER).config
    state = golden_state()
    with pytest.raises(UserError, match=f"{name} is missing;"):
        import_params(tensors({key: value for key, value in state.items() if key != name}), config)
    with pytest.raises(UserError, match=r"backbone\.convnext\.9\.gamma is not in the network;"):
        import_params(tensors({**state, "backbone.convnext.9.gamma": np.zeros(64)}), config)
    with pytest.raises(UserError, match=rf"{name} is \[3\] in place of \[128, 64\]"):
        import_params(tensors({**state, name: np.zeros(3)}), config)
    with pytest.raises(UserError, match=f"{name} holds NaN"):
        import_params(tensors({**state, name: np.full((128, 64), np.nan)}), config)
    with pytest.raises(UserError, match="Hann"):
        import_params(tensors({**state, "head.istft.window": np.ones(2400)}), config)
    assert import_params(tensors({**state, "discriminator.0.weight": np.zeros(3)}), config)
    unneeded = ("embed_avg", "cluster_size", "inited", "head.istft.window")
    assert import_params(tensors({key: value for key, value in state.items() if not key.endswith(unneeded)}), config)


def arguments(part):
    return lambda values: values["model"]["init_args"][part]["init_args"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: arguments("backbone")(v).update(num_layers=2),
            r"convnext\.2\.\w+\.bias is not in .* 8 more",
        ),
        (lambda v: arguments("backbone")(v).update(num_layers=4), r"convnext\.3\..* is missing .* 8 more"),
        (
            lambda v: arguments("feature_extractor")(v).update(vq_bins=64),
            r"embed is \[128, 32\] in .* \[64, 32\]",
        ),
        (lambda v: arguments("feature_extractor")(v).update(num_quantizers=8), "num_quantizers is 8"),
        (lambda v: arguments("head")(v).update(hop_length=300), "hop_length is 300"),
        (lambda v: arguments("feature_extractor")(v).update(dowmsamples=[8, 5, 4, 2]), "hop 320 and window 2400"),
        (lambda v: arguments("head")(v).update(padding="center"), "padding is 'center'"),
        (lambda v: arguments("head")(v).pop("n_fft"), "config.json.*n_fft"),
        (lambda v: arguments("backbone")(v).update(dim="wide"), "dim must be positive whole numbers, not 'wide'"),
        (lambda v: arguments("backbone")(v).update(adanorm_num_embeddings=None), "conditions must be positive"),
        (lambda v: v["model"]["init_args"].pop("head"), "no model.init_args.head"),
    ],
)
def test_wrong_configs(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        SpeechCodec.load(folder_with(tmp_path, golden_state(), change=change))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_both_descriptions_say_the_same(tmp_path):
    """The yaml file has no place for the two widths that the reference fixes in its code; here they are narrower."""
    description = yaml.safe_load((FOLDER / "config.yaml").read_text())
    with pytest.raises(UserError, match=r"input_channels is 32.*only be 512"):
        WavTokenizerConfig.from_published(description)
    fixed = {"reduced_overrides_of_hard_coded_values": {"dimension": 32, "n_filters": 4}}
    assert WavTokenizerConfig.from_published({**description, **fixed}) == SpeechCodec.load(FOLDER).config
    assert WavTokenizerConfig.from_published(published_yaml()) == WavTokenizerConfig()


def test_wrong_folders(tmp_path):
    with pytest.raises(UserError, match="no speech codec at"):
        SpeechCodec.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="no file of weights"):
        SpeechCodec.load(folder_with(tmp_path))
    (tmp_path / "one.ckpt").write_bytes(b"")
    (tmp_path / "two.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 file of weights of WavTokenizer \(one\.ckpt, two\.ckpt\)"):
        SpeechCodec.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"init_args": {"feature_extractor": ')
    (tmp_path / "two.ckpt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        SpeechCodec.load(tmp_path)


class Attack:
    """What pickle would run a command for."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_descriptions_of_other_models_are_passed_over(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "chameleon", "vq_config": {}}')
    (tmp_path / "vqgan.yaml").write_text("model: {params: {ddconfig: {}}}")
    with pytest.raises(UserError, match="no speech codec at"):
        SpeechCodec.load(tmp_path)
    (tmp_path / "speech").mkdir()
    folder_with(tmp_path / "speech", golden_state())
    assert SpeechCodec.load(tmp_path).fingerprint == SpeechCodec.load(FOLDER).fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "PyTorch cannot read it"),
        (b"not a checkpoint", "PyTorch cannot read it|anything but tensors"),
        ([1, 2], "holds a list"),
        ({"state_dict": {}}, "is missing"),
        ("attack", "PyTorch cannot read it|anything but tensors|is missing"),
    ],
)
def test_wrong_checkpoints(tmp_path, content, message):
    torch = pytest.importorskip("torch")
    folder, file = folder_with(tmp_path), tmp_path / "model.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        attack = {"state_dict": {"x": torch.zeros(1)}, "extra": Attack(f"touch {tmp_path / 'ran'}")}
        torch.save(attack if content == "attack" else content, file)
    with pytest.raises(UserError, match=rf"model\.ckpt.*{message}") as caught:
        SpeechCodec.load(folder)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (folder_with(tmp_path) / "model.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'aromni_jax\[torch\]'"):
        SpeechCodec.load(tmp_path)


def test_a_damaged_safetensors_file(tmp_path):
    (folder_with(tmp_path) / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(UserError, match=r"model\.safetensors: .*fetch it again"):
        SpeechCodec.load(tmp_path)


def test_saved_as_a_codec_folder_of_ours(tmp_path):
    codec = SpeechCodec.load(FOLDER)
    codec.save(tmp_path / "speech", {"licence": "none"})
    again = SpeechCodec.load(tmp_path)
    assert again.config == codec.config and again.fingerprint == codec.fingerprint
    wave = np.random.default_rng(0).normal(0, 0.1, (1, 3000)).astype(np.float32)
    np.testing.assert_array_equal(again.encode(wave), codec.encode(wave))
    np.testing.assert_array_equal(again.decode(again.encode(wave)), codec.decode(codec.encode(wave)))
    assert (
        SpeechCodec.load(tmp_path, dtype="bfloat16").fingerprint
        == SpeechCodec.load(FOLDER, dtype="bfloat16").fingerprint
    )

    card = tmp_path / "speech" / "codec.json"
    values = json.loads(card.read_text())
    assert values["fingerprint"] == codec.fingerprint and values["architecture"] == "wavtokenizer"
    card.write_text(json.dumps({**values, "architecture": "other"}))
    with pytest.raises(UserError, match="unknown architecture other"):
        SpeechCodec.load(tmp_path)
    card.write_text(json.dumps({**values, "config": {**values["config"], "width": 3}}))
    with pytest.raises(UserError, match="width"):
        SpeechCodec.load(tmp_path)


def test_the_small_codec_saves_what_it_was(tmp_path):
    codec = SpeechCodec.load("numbers")
    codec.save(tmp_path)
    assert SpeechCodec.load(tmp_path).fingerprint == codec.fingerprint == "0e2823064d5b36a3"


def test_a_codec_folder_wins_over_published_files(tmp_path):
    SpeechCodec.load("numbers").save(tmp_path / "speech")
    shutil.copy(FOLDER / "config.json", tmp_path)
    assert SpeechCodec.load(tmp_path).fingerprint == "0e2823064d5b36a3"
