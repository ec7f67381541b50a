"""Where `aromni evaluate` and `aromni demo` take their world from, and what they say when there is none."""

import argparse

import jax
import pytest

from aromni_jax.cli import demo
from aromni_jax.cli.main import main
from aromni_jax.config import ModelConfig
from aromni_jax.convert import save_model
from aromni_jax.model import init_params
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.compact(text_pieces=8, image_codes=4, image_tokens=2, speech_codes=4)


def save(folder, world):
    """A model that says where it was trained."""
    config = ModelConfig(vocab_size=V.size, dim=8, layers=1, heads=1, kv_heads=1, head_dim=8, ffn_dim=8)
    params = init_params(config, jax.random.key(0))
    save_model(folder, params, config, V, {"world": world, "template": "brief"})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model trained with codecs of its own."""
    return save(tmp_path_factory.mktemp("models") / "model", "my/codecs")


def test_a_model_of_no_known_world_is_not_judged_in_a_guessed_one(model, tmp_path, capsys):
    assert main(["evaluate", "--model", str(model), "--out", str(tmp_path)]) == 1
    error = f"aromni: {model}: trained in my/codecs; say where to judge it with --world numbers or things\n"
    assert capsys.readouterr().err == error


def test_the_world_asked_for_does_not_change_the_codecs_of_the_model(model, tmp_path, capsys):
    assert main(["evaluate", "--model", str(model), "--world", "numbers", "--out", str(tmp_path)]) == 1
    assert "no text codec at my/codecs" in capsys.readouterr().err


def test_a_model_of_one_world_is_not_judged_in_another(tmp_path, capsys):
    model = save(tmp_path / "model", "things")
    assert main(["evaluate", "--model", str(model), "--world", "numbers", "--out", str(tmp_path)]) == 1
    error = f"aromni: {model}: trained in things, whose codecs have other pictures than numbers: leave --world out\n"
    assert capsys.readouterr().err == error


def test_the_run_folder_is_that_of_the_world_of_the_recipe(tmp_path):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    for words, folder in ((["--config", "configs/things.py:tiny"], "runs/demo-things"), ([], "runs/demo")):
        args = parser.parse_args(words)
        assert demo._recipe(args).data.path == f"{folder}/data" and str(args.run_dir) == folder


def test_a_demo_of_a_world_by_the_recipe_of_another_is_refused(tmp_path, capsys):
    words = ["demo", "--world", "things", "--config", "configs/numbers.py:tiny", "--run-dir", str(tmp_path / "run")]
    assert main(words) == 1
    error = "aromni: configs/numbers.py:tiny is a recipe of the world numbers, not of things\n"
    assert capsys.readouterr().err == error and not (tmp_path / "run").exists()
