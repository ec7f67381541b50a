"""Model folders: what is saved comes back, whole or not at all, and wrong input is one line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax import store
from aromni_jax.config import ModelConfig, RunConfig
from aromni_jax.convert import load_model, save_model
from aromni_jax.errors import UserError
from aromni_jax.model import flatten, forward, init_params, logits
from aromni_jax.training import TrainState
from aromni_jax.training.checkpoints import Checkpoints
from aromni_jax.vocabulary import JointVocabulary
from tests.full_disk import full_disk

VOCABULARY = JointVocabulary.compact(text_pieces=24, image_codes=16, image_tokens=4, speech_codes=16)
CONFIG = ModelConfig(
    vocab_size=VOCABULARY.size, dim=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn_dim=24, norm_order="swin"
)
PARAMS = init_params(CONFIG, jax.random.key(0))
TOKENS = jnp.array([[0, 5, 6, 7, 21, 3]])


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", PARAMS, CONFIG, VOCABULARY, {"world": "numbers", "recipe": {"steps": 3}})
    return tmp_path / "model"


def edit(folder, **changes):
    """Change fields of aromni.json."""
    file = folder / store.MODEL_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_saved_model_comes_back(folder):
    model = load_model(folder)
    assert model.config == CONFIG and model.vocabulary == VOCABULARY
    assert model.metadata == {"world": "numbers", "template": None, "recipe": {"steps": 3}}
    for name, array in flatten(PARAMS).items():
        np.testing.assert_array_equal(flatten(model.params)[name], array)


def test_calling_it_gives_float32_logits_and_hidden_states(folder):
    logits_bsv, hidden_bsd = load_model(folder)(TOKENS)
    expected_bsd, _ = forward(PARAMS, CONFIG, TOKENS)
    assert logits_bsv.shape == (1, 6, VOCABULARY.size) and logits_bsv.dtype == jnp.float32
    np.testing.assert_allclose(hidden_bsd, expected_bsd, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits_bsv, logits(PARAMS, CONFIG, expected_bsd), rtol=1e-5, atol=1e-6)
    split, _ = load_model(folder)(TOKENS, jnp.array([[0, 1, 2, 0, 1, 2]]), jnp.array([[1, 1, 1, 2, 2, 2]]))
    alone, _ = load_model(folder)(TOKENS[:, 3:])
    np.testing.assert_allclose(split[:, 3:], alone, rtol=1e-5, atol=1e-5)


def test_a_small_dtype_on_disk_is_that_of_the_loaded_model(tmp_path):
    save_model(tmp_path / "small", PARAMS, CONFIG, VOCABULARY, dtype="bfloat16")
    model = load_model(tmp_path / "small")
    kernel = model.params["head"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and model.config == dataclasses.replace(CONFIG, param_dtype="bfloat16")
    np.testing.assert_array_equal(kernel, PARAMS["head"]["kernel"].astype(jnp.bfloat16))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2, told apart by their parameters."""
    folder = tmp_path_factory.mktemp("run")
    run = RunConfig(model=CONFIG, template="aromni")
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        params = jax.tree.map(lambda x, step=step: x + step, PARAMS)
        state = TrainState(jnp.int32(step), params, {}, jnp.int32(0))
        checkpoints.save(state, run, VOCABULARY, {"step": step})
    checkpoints.close()
    return folder


@pytest.mark.parametrize(("inside", "step"), [("", 2), ("checkpoints", 2), ("checkpoints/1", 1)])
def test_runs_and_their_checkpoints_load_too(run_folder, inside, step):
    model = load_model(run_folder / inside)
    np.testing.assert_array_equal(model.params["head"]["kernel"], PARAMS["head"]["kernel"] + step)
    assert model.metadata["step"] == step and model.metadata["template"] == "aromni"
    assert model.metadata["world"] == "numbers"


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a model folder"):
        load_model(tmp_path)


def test_another_vocabulary(folder):
    other = JointVocabulary.compact(text_pieces=20, image_codes=20, image_tokens=4, speech_codes=16)
    with pytest.raises(UserError, match=r"made with vocabulary .* is in use") as caught:
        load_model(folder, vocabulary=other)
    assert "\n" not in str(caught.value)
    assert load_model(folder, vocabulary=VOCABULARY).vocabulary == VOCABULARY


def test_an_edited_vocabulary(folder):
    edit(folder, vocabulary={**VOCABULARY.to_dict(), "image_tokens": 5})
    with pytest.raises(UserError, match="does not match its own fingerprint"):
        load_model(folder)


def test_an_unknown_layout_version(folder):
    edit(folder, layout_version=2)
    with pytest.raises(UserError, match="layout version 2 is unknown"):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ffn_dim", 32, r"layers/ffn/down has shape \(2, 24, 16\), its config says \(2, 32, 16\)"),
        ("perceptual_dim", 4, "perceptual/bias is only in the config"),
        ("dims", 4, "unknown config key model.dims: did you mean model.dim"),
    ],
)
def test_a_config_that_does_not_fit_the_arrays(folder, key, value, message):
    config = json.loads((folder / store.MODEL_FILE).read_text())["config"]
    edit(folder, config={**config, key: value})
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_a_flipped_bit_is_found(folder):
    file = max((f for f in (folder / "params").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|cannot be read"):
        load_model(folder)


def test_an_existing_folder_is_not_overwritten(folder):
    with pytest.raises(UserError, match="exists already"):
        save_model(folder, PARAMS, CONFIG, VOCABULARY)
    assert load_model(folder).metadata["recipe"] == {"steps": 3}


def test_wrong_parameters_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="final_norm/scale is missing"):
        save_model(tmp_path / "m", {k: v for k, v in PARAMS.items() if k != "final_norm"}, CONFIG, VOCABULARY)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    with full_disk(500), pytest.raises(UserError, match="the model could not be written") as caught:
        save_model(tmp_path / "m", PARAMS, CONFIG, VOCABULARY)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
