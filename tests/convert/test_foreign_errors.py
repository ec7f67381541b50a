"""What is wrong with a foreign checkpoint is one line that names the file and the key."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy

from aromni_jax.convert import load_model, open_source
from aromni_jax.convert.layouts import pieces, to_external
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary
from tests.golden_models import FOLDER, VOCABULARY

INDEX = "model.safetensors.index.json"


@pytest.fixture
def single(tmp_path):
    """A checkpoint in one file."""
    shutil.copytree(FOLDER / "mha_swin", tmp_path / "single")
    return tmp_path / "single"


@pytest.fixture
def sharded(tmp_path):
    """The same in four files with an index."""
    shutil.copytree(FOLDER / "gqa", tmp_path / "sharded")
    return tmp_path / "sharded"


def refused(path, message, vocabulary=VOCABULARY):
    with pytest.raises(UserError, match=message) as caught:
        load_model(path, vocabulary)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def edit_json(file, **changes):
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def edit_tensors(folder, change):
    file = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    change(arrays)
    safetensors.numpy.save_file(arrays, file)


def test_the_two_fixtures_load(single, sharded):
    assert load_model(single, VOCABULARY).config.norm_order == "swin"
    assert load_model(sharded, VOCABULARY).config.kv_heads == 2


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00004.safetensors").unlink()
    refused(sharded, rf"model-00002-of-00004\.safetensors: shard is missing, though {re.escape(INDEX)} lists it")


def test_a_truncated_shard(sharded):
    file = sharded / "model-00003-of-00004.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(sharded, r"model-00003-of-00004\.safetensors: cut off at .* bytes, in tensor \S+; fetch it again")


def test_a_tensor_that_the_index_puts_elsewhere(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00004.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, r"model-00001-of-00004\.safetensors: tensor model\.norm\.weight is missing, though")


def test_an_index_that_points_outside(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../../secret.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, r"names the file '\.\./\.\./secret\.safetensors', which is outside the folder")


def test_a_missing_key(single):
    edit_tensors(single, lambda arrays: arrays.pop("model.layers.1.mlp.up_proj.weight"))
    refused(single, r"single: tensor model\.layers\.1\.mlp\.up_proj\.weight is missing from the checkpoint")


def test_an_extra_key(single):
    edit_tensors(single, lambda arrays: arrays.update({"model.layers.3.mlp.up_proj.weight": np.zeros((1, 1), "f4")}))
    refused(single, r"model\.safetensors: tensor model\.layers\.3\.mlp\.up_proj\.weight is unknown; config\.json")


def test_old_rotary_buffers_are_no_extra_keys(single):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(single, lambda arrays: arrays.update({name: np.zeros(8, "f4")}))
    load_model(single, VOCABULARY)


def test_a_wrong_shape(single):
    edit_tensors(single, lambda arrays: arrays.update({"lm_head.weight": np.zeros((640, 65), "f4")}))
    refused(single, r"tensor lm_head\.weight has shape \[640, 65\]; config\.json says \[640, 64\]")


def test_a_config_that_disagrees_with_the_weights(single):
    edit_json(single / "config.json", intermediate_size=180)
    refused(
        single, r"tensor model\.layers\.0\.mlp\.gate_proj\.weight has shape \[176, 64\]; config\.json says \[180, 64\]"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, r"config\.json: model_type is 'llama'; expected 'chameleon'"),
        ({"hidden_size": ...}, r"config\.json: key hidden_size is missing"),
        ({"attention_bias": True}, r"config\.json: attention_bias is True; this decoder has only False"),
        ({"rope_scaling": {"type": "linear"}}, r"config\.json: rope_scaling: is of type 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"config\.json: rope_parameters: is of type 'yarn'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"config\.json: rope_parameters: partial_rotary_factor"),
        ({"rope_parameters": [1]}, r"config\.json: rope_parameters is \[1\]; expected an object"),
        ({"num_hidden_layers": "three"}, r"config\.json: num_hidden_layers is 'three'; expected a whole number from 1"),
        ({"num_hidden_layers": 10**7}, r"config\.json: claims 10,000,000 layers; the checkpoint has 42 tensors"),
        ({"num_attention_heads": []}, r"config\.json: num_attention_heads is \[\]; expected a whole number"),
        ({"hidden_size": True}, r"config\.json: hidden_size is True; expected"),
        ({"rms_norm_eps": -1}, r"config\.json: rms_norm_eps is -1; expected a positive number"),
        ({"rope_theta": 0}, r"config\.json: rope_theta is 0; expected a positive number"),
        ({"swin_norm": "false"}, r"config\.json: swin_norm is 'false'; expected true or false"),
        ({"tie_word_embeddings": True}, r"config\.json: tie_word_embeddings is True"),
        ({"mlp_bias": True}, r"config\.json: mlp_bias is True"),
        ({"aromni": [1]}, r"config\.json: aromni is \[1\]; expected an object"),
        ({"aromni": {"model": "x"}}, r"config\.json: aromni: model is 'x'; expected an object"),
        ({"aromni": {"metadata": [2]}}, r"config\.json: aromni: metadata is \[2\]"),
        ({"aromni": {"vocabulary": {"size": "640"}}}, r"vocabulary: missing or unknown fields"),
        ({"vocabulary_map": {"<s>": "0"}}, r"config\.json: vocabulary_map: <s> is '0'; expected a whole number"),
        ({"vocabulary_map": [1]}, r"config\.json: vocabulary_map is \[1\]"),
        ({"num_key_value_heads": 3}, r"config\.json: .*heads"),
    ],
)
def test_a_config_of_something_else(single, changes, message):
    edit_json(single / "config.json", **changes)
    refused(single, message)


def test_a_config_that_is_no_json(single):
    (single / "config.json").write_text("{")
    refused(single, r"config\.json: not valid JSON")


def test_bos_is_zero_whatever_the_config_says(single):
    edit_json(single / "config.json", bos_token_id=1)
    source = open_source(single, VOCABULARY)
    assert source.vocabulary.bos == 0
    assert any("bos_token_id 1 is wrong; 0 is used" in warning for warning in source.warnings)


def test_image_names_with_other_ids(single):
    values = json.loads((single / "config.json").read_text())["vocabulary_map"]
    edit_json(single / "config.json", vocabulary_map=values | {"IMGIMGFZ": 10, "IMGIMGGZ": 9})
    refused(single, r"config\.json: token IMGIMGFZ has id 10, expected 9; .*\(id = code \+ 4\)")


def test_a_tokenizer_with_other_ids(single):
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<reserved00050>": 55}
    (single / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    refused(single, r"tokenizer\.json: token <reserved00050> has id 55, expected 54")


def test_tokens_that_were_added_count(single):
    added = [{"id": 10, "content": "IMGIMGAZ"}]
    (single / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"<s>": 0}}, "added_tokens": added}))
    refused(single, r"tokenizer\.json: token IMGIMGAZ has id 10, expected 4")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model": {"vocab": 5}}', '{"added_tokens": [3]}', "{}x"])
def test_a_tokenizer_file_that_is_none(single, text):
    (single / "tokenizer.json").write_text(text)
    refused(single, r"tokenizer\.json: ")


@pytest.mark.parametrize("kind", ["i1", "?", "i8"])
def test_weights_that_are_no_floating_point_numbers(single, kind):
    edit_tensors(single, lambda arrays: arrays.update({"model.norm.weight": np.ones(64, kind)}))
    refused(single, r"tensor model\.norm\.weight is of type (int8|bool|int64); weights must be floating-point")


def test_the_widest_dtype_is_the_models(single):
    import ml_dtypes

    half = np.dtype(ml_dtypes.bfloat16)
    edit_tensors(
        single,
        lambda arrays: arrays.update({k: v.astype(half) for k, v in arrays.items() if "norm" in k}),
    )
    model = load_model(single, VOCABULARY)
    assert model.config.param_dtype == "float32"
    wanted = load_model(FOLDER / "mha_swin", VOCABULARY).params["head"]["kernel"]
    np.testing.assert_array_equal(model.params["head"]["kernel"], wanted)


def test_a_tensor_that_the_index_does_not_list(sharded):
    index = json.loads((sharded / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, r"tensor model\.norm\.weight is unknown; model\.safetensors\.index\.json does not put it there")


@pytest.mark.parametrize("value", [None, [], 3, {"a": 1}])
def test_an_index_of_wrong_kinds(sharded, value):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = value
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, r"index\.json: weight_map: ")


def test_shards_without_their_index(sharded):
    (sharded / INDEX).unlink()
    refused(sharded, r"model\.safetensors\.index\.json: is missing, though model-\S+ is a shard")


@pytest.mark.parametrize("text", ["[]", "{", '{"files": 3}', '{"files": {"model.safetensors": 3}}'])
def test_a_broken_manifest(single, text):
    (single / "aromni_manifest.json").write_text(text)
    refused(single, r"aromni_manifest\.json")


def test_rope_theta_where_transformers_5_has_it(single):
    edit_json(single / "config.json", rope_theta=1e4, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert load_model(single, VOCABULARY).config.rope_theta == 5e5


def test_a_vocabulary_that_nobody_names(single):
    refused(single, "single: has 640 ids; the official layout has 65,536: say which vocabulary it is", None)


def test_a_vocabulary_of_another_size(single):
    other = JointVocabulary.compact(text_pieces=4, image_codes=4, image_tokens=2, speech_codes=4)
    refused(single, "single: has 640 ids, its vocabulary 24", other)


def test_a_projection_that_stayed_behind_is_a_warning(single):
    """`save_pretrained` of transformers keeps our note and not our file."""
    edit_json(single / "config.json", aromni={"model": {"perceptual_dim": 4}})
    source = open_source(single, VOCABULARY)
    assert source.config.perceptual_dim == 0
    assert any("aromni_extra.safetensors is missing: the perceptual projection is lost" in w for w in source.warnings)


def test_a_folder_with_nothing_known(tmp_path):
    message = refused(tmp_path, "no model here: neither a model folder .* nor weights of Hugging Face .* or Meta")
    assert "complete" in message


# -- files that need PyTorch -------------------------------------------------------------------------


@pytest.fixture
def binary(single):
    """The same checkpoint as a .bin file."""
    torch = pytest.importorskip("torch")
    arrays = safetensors.numpy.load_file(single / "model.safetensors")
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, single / "pytorch_model.bin")
    (single / "model.safetensors").unlink()
    return single


@pytest.fixture
def meta(tmp_path, single):
    """The same checkpoint in Meta's layout."""
    torch = pytest.importorskip("torch")
    source = open_source(single, VOCABULARY)

    state = {
        p.name("meta"): torch.from_numpy(to_external(source.read(p), p.spec, "meta")) for p in pieces(source.config)
    }
    folder = tmp_path / "meta" / "models" / "7b"
    shutil.copytree(FOLDER / "mha_swin" / "meta", folder)
    torch.save({**state, "rope.freqs": None}, folder / "consolidated.pth")
    return folder


def test_a_bin_loads_as_safetensors_do(binary):
    model = load_model(binary, VOCABULARY)
    wanted = load_model(FOLDER / "mha_swin", VOCABULARY)
    np.testing.assert_array_equal(model.params["head"]["kernel"], wanted.params["head"]["kernel"])


def test_a_sharded_bin(binary):
    torch = pytest.importorskip("torch")
    state = torch.load(binary / "pytorch_model.bin", weights_only=True)
    names, shards = list(state), {}
    for number in range(2):
        file = f"pytorch_model-0000{number + 1}-of-00002.bin"
        torch.save({name: state[name] for name in names[number::2]}, binary / file)
        shards |= dict.fromkeys(names[number::2], file)
    (binary / "pytorch_model.bin").unlink()
    (binary / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    load_model(binary, VOCABULARY)


def test_a_bin_that_holds_code(binary):
    torch = pytest.importorskip("torch")
    torch.save({"model.norm.weight": shutil.rmtree}, binary / "pytorch_model.bin")
    refused(binary, r"pytorch_model\.bin: holds anything but tensors")


def test_a_meta_folder_and_what_lies_above_it(meta):
    for path in (meta, meta.parents[1]):
        model = load_model(path, VOCABULARY)
        assert model.config.ffn_dim == 176 and model.config.norm_order == "swin"


def test_a_meta_folder_without_a_shard(meta):
    (meta / "consolidated.pth").rename(meta / "consolidated.00.pth")
    edit_json(meta / "consolidate_params.json", model_parallel_size=2)
    refused(meta, r"consolidated\.01\.pth: shard is missing; 2 are expected \(model_parallel_size\)")


def test_meta_params_that_disagree(meta):
    values = json.loads((meta / "params.json").read_text())
    values["model"]["multiple_of"] = 256
    (meta / "params.json").write_text(json.dumps(values))
    refused(meta, r"consolidated\.pth: tensor layers\.0\.feed_forward\.w1\.weight has shape \[176, 64\]; params\.json")


def test_meta_without_qk_norm(meta):
    values = json.loads((meta / "params.json").read_text())
    values["model"]["qk_normalization"] = False
    (meta / "params.json").write_text(json.dumps(values))
    refused(meta, r"params\.json: qk_normalization is false")


def test_meta_tensors_missing_and_unknown(meta):
    torch = pytest.importorskip("torch")
    state = torch.load(meta / "consolidated.pth", weights_only=True)
    torch.save({**state, "layers.7.ffn_norm.weight": torch.ones(64)}, meta / "consolidated.pth")
    refused(meta, r"consolidated\.pth: tensor layers\.7\.ffn_norm\.weight is unknown")
    del state["layers.2.ffn_norm.weight"]
    torch.save(state, meta / "consolidated.pth")
    refused(meta, r"consolidated\.pth: tensor layers\.2\.ffn_norm\.weight is missing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": "64"}, "dim is '64'; expected a whole number"),
        ({"n_heads": 0}, "n_heads is 0; expected a whole number"),
        ({"n_heads": None}, "key n_heads is missing"),
        ({"multiple_of": 0}, "multiple_of is 0"),
        ({"ffn_dim_multiplier": float("nan")}, "ffn_dim_multiplier is nan; expected a positive number"),
        ({"swin_norm": "false"}, "swin_norm is 'false'; expected true or false"),
        ({"vocab_size": 641}, "vocab_size is 641, but the weights have 640 rows"),
        ({"n_layers": 10**7}, "claims 10,000,000 layers"),
    ],
)
def test_odd_values_in_params(meta, changes, message):
    values = json.loads((meta / "params.json").read_text())
    values["model"] |= changes
    (meta / "params.json").write_text(json.dumps(values))
    refused(meta, rf"params\.json: {message}")


def test_consolidate_params_have_the_last_word(meta):
    """As in Meta's loader: params, its nested model, consolidate_params."""
    (meta / "consolidated.pth").rename(meta / "consolidated.00.pth")
    values = json.loads((meta / "params.json").read_text())
    values["model"]["model_parallel_size"] = 8
    (meta / "params.json").write_text(json.dumps(values))
    assert load_model(meta, VOCABULARY).config.layers == 3


def test_a_relative_path(meta, monkeypatch):
    monkeypatch.chdir(meta)
    assert load_model(".", VOCABULARY).config.layers == 3
    monkeypatch.chdir(meta.parent)
    assert load_model("7b", VOCABULARY).config.layers == 3


def test_two_sizes_under_models(meta):
    shutil.copytree(meta, meta.parent / "30b")
    refused(meta.parents[1], "holds 30b, 7b under models/; name one of them")


def test_without_torch_the_extra_is_named(binary, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(binary, r"pip install 'aromni_jax\[torch\]', or use safetensors")
