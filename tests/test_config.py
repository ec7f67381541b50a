import dataclasses
import pathlib

import pytest
from ml_collections import ConfigDict

from aromni_jax.config import RunConfig, load_config
from aromni_jax.errors import UserError
from aromni_jax.prepare import Codecs
from aromni_jax.worlds import WORLDS

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
MODEL = {"vocab_size": 10, "dim": 4, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 2, "ffn_dim": 8}


def test_dict_round_trip():
    config = RunConfig.from_dict({"model": MODEL, "loss": {"response_weights": {"chat": 3}, "z_loss": 1}})
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.loss.response_weights == {"chat": 3.0}
    assert isinstance(config.loss.z_loss, float)


def test_config_dict_is_frozen_into_the_same_thing():
    assert RunConfig.from_config_dict(ConfigDict({"model": MODEL})) == RunConfig.from_dict({"model": MODEL})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "unknown config key modle: did you mean model"),
        ({"model": MODEL | {"dimm": 3}}, "unknown config key model.dimm: did you mean model.dim"),
        ({"model": MODEL | {"dim": "8"}}, "model.dim: is '8'; expected int"),
        ({"model": MODEL | {"dim": True}}, "model.dim: is True; expected int"),
        ({"model": MODEL | {"heads": 3, "kv_heads": 2}}, "model.heads: must be a multiple of kv_heads 2"),
        ({"model": MODEL | {"norm_order": "post"}}, "model.norm_order: is 'post'; use one of 'pre', 'swin'"),
        ({"model": MODEL, "loss": {"response_weights": {"asr": 2}}}, "unknown task 'asr'"),
        ({"model": MODEL, "loss": {"perceptual_tasks": "chat"}}, "expected a list"),
        ({"model": MODEL, "train": 3}, "config key train: expected a group"),
        ({"model": {}}, "missing 7 required"),
        ({"model": MODEL | {"kv_heads": 0}}, "model.kv_heads: is 0; it must be positive"),
        ({"model": MODEL, "train": {"log_every": 0}}, "train.log_every: is 0; it must be positive"),
        ({"model": MODEL, "data": {"batch_size": -4}}, "data.batch_size: is -4; it must be positive"),
        ({"model": MODEL, "optimizer": {"peak_lr": float("nan")}}, "optimizer.peak_lr: is nan; expected a finite"),
    ],
)
def test_a_wrong_key_or_value_is_named(values, message):
    with pytest.raises(UserError, match=message):
        RunConfig.from_dict(values)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(f"def get_config(arg):\n    return {{'model': {MODEL!r}, 'world': arg or 'numbers'}}\n")
    return path


def test_load_with_argument_and_overrides(config_file):
    config = load_config(f"{config_file}:things", ["train.steps=7", "data.path=rows", "loss.prompt_weight=0"])
    assert (config.world, config.train.steps, config.data.path, config.loss.prompt_weight) == (
        "things",
        7,
        "rows",
        0,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stps=7", "did you mean train.steps"),
        ("train.steps", "write it as key.path=value"),
        ("train.steps=many", "expected int"),
        ("world.name=x", "world is a value, not a group"),
    ],
)
def test_a_bad_override_is_named(config_file, override, message):
    with pytest.raises(UserError, match=message):
        load_config(str(config_file), [override])


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_config(str(tmp_path / "none.py"))
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    with pytest.raises(UserError, match="line 1"):
        load_config(str(tmp_path / "broken.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="get_config"):
        load_config(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "misspelt.py",
            "import ml_collections\ndef get_config(arg):\n    ml_collections.ConfigDict({'model': 1}).modle.dim = 3\n",
            "misspelt.py, line 3: AttributeError.*modle",
        ),
        ("absent.py", "import no_such_module\n", "absent.py, line 1: ModuleNotFoundError"),
        ("nothing.py", "def get_config(arg):\n    pass\n", "returned NoneType; expected a ConfigDict"),
        ("notes.txt", "hello", "is no Python file"),
    ],
)
def test_whatever_a_config_file_does_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / name))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("variant", ["demo", "shipped", "tiny"])
def test_the_recipe_of_every_world_fits_its_codecs(world, variant):
    config = load_config(f"{CONFIGS / world}.py:{variant}")
    assert config.world == world
    assert config.model.vocab_size == Codecs.load(world).vocabulary.size
    with pytest.raises(UserError, match="unknown variant 'huge'"):
        load_config(f"{CONFIGS / world}.py:huge")


# SPEC 5.1 and 5.2: variant -> values by key.
RECIPES = {
    "ar-omni": {
        "optimizer.peak_lr": 6e-5, "optimizer.warmup_steps": 7000, "train.steps": 140_000, "loss.prompt_weight": 1.0,
        "loss.normalise": "tokens", "loss.align": "predict", "loss.projection": "trained", "train.trainable": [],
    },
    "ar-omni-chat": {
        "optimizer.peak_lr": 2e-5, "optimizer.warmup_steps": 900, "train.steps": 18_000, "data.batch_size": 64,
        "loss.prompt_weight": 0.0, "loss.response_weights": {}, "loss.perceptual_tasks": [],
    },
    "ar-omni-released": {
        "optimizer.peak_lr": 1e-5, "optimizer.warmup_steps": 4500, "train.steps": 150_000, "data.batch_size": 256,
        "train.accumulate_steps": 16, "train.checkpoint_every": 1000, "loss.prompt_weight": 1.0,
        "loss.response_weights": {"image_caption": 2.0, "speech_to_text": 2.0}, "loss.normalise": "micro_batch",
        "loss.align": "same_position", "loss.reduce": "mean", "loss.projection": "frozen",
        "loss.perceptual_tasks": ["text_to_image"], "loss.perceptual_weight": 1.0,
    },
    "ar-omni-chat-released": {
        "optimizer.peak_lr": 1e-5, "optimizer.warmup_steps": 540, "data.batch_size": 64, "train.accumulate_steps": 8,
        "train.checkpoint_every": 2000, "loss.prompt_weight": 0.0, "loss.segment_weight": 1.0,
        "loss.response_weights": {}, "loss.perceptual_tasks": [], "loss.normalise": "micro_batch",
    },
    "anole-head": {"train.trainable": ["head/kernel@image"], "loss.perceptual_weight": 0.0, "model.norm_order": "pre"},
}  # fmt: skip
OPTIMIZER = {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0, "clip_norm": 1, "decay": "linear"}


@pytest.mark.parametrize("variant", RECIPES)
def test_the_reference_recipes_have_the_numbers_of_the_specification(variant):
    config = load_config(f"{CONFIGS}/reference.py:{variant}").to_dict()
    wanted = RECIPES[variant] | {f"optimizer.{key}": value for key, value in OPTIMIZER.items()}
    found = {key: config[key.split(".")[0]][key.split(".")[1]] for key in wanted}
    assert found == wanted
    mixture = config["data"]["mixture"]
    if variant == "ar-omni":  # text : image-text : speech-text
        pictures, speech = (sum(mixture[task] for task in mixture if kind in task) for kind in ("image", "speech"))
        assert (mixture["text_to_text"], pictures, speech) == (0.5, 1.0, 2.0)


def test_the_tuning_recipe_fits_the_shipped_model():
    tune, shipped = (load_config(f"{CONFIGS}/numbers.py:{variant}") for variant in ("tune", "shipped"))
    assert tune.model.lora.rank and dataclasses.replace(tune.model, lora=shipped.model.lora) == shipped.model
    assert tune.train.init_from == "numbers" and tune.loss.prompt_weight == 0 and tune.loss.segment_weight == 2
