"""Training a part: adapters, rows of one modality, the moving average. What is not trained stays, to the bit."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax import store
from aromni_jax.config import LoraConfig, MeshConfig
from aromni_jax.convert import convert, load_model, open_source, save_model
from aromni_jax.errors import UserError
from aromni_jax.model import ADAPTER, abstract_params, flatten, forward, init_params, nest, parameter_table, trained
from aromni_jax.parallel import make_mesh
from aromni_jax.tensorfile import TensorFile
from aromni_jax.training import abstract_state, make_optimizer
from tests.training import small_run
from tests.training.test_checkpoints import assert_bit_equal
from tests.training.test_loop import Killed, start
from tests.training.test_step import CLOSE, Runner, assert_same_params

V = small_run.VOCABULARY
LORA = {"model__lora": LoraConfig(rank=4, alpha=8.0), "loss__projection": "frozen", "train__ema_decay": 0.5}
ANOLE = {"train__trainable": ("head/kernel@image", "embedder/embedding@image"), "loss__perceptual_weight": 0.0}


@pytest.fixture(scope="module")
def run(data_path):
    return small_run.config(data_path, optimizer__warmup_steps=0, optimizer__decay="constant")


@pytest.fixture(scope="module")
def pictures(run):
    """Takes steps that train the rows of pictures (the recipe of Anole), under weight decay, with an average."""
    return Runner(small_run.changed(run, **ANOLE, train__ema_decay=0.2, optimizer__peak_lr=0.05))


@pytest.fixture(scope="module")
def adapted(run):
    """A run of adapters: its config, start and state after two steps on one device."""
    runner = Runner(small_run.changed(run, **LORA))
    before = runner.start()
    return runner.run, before, runner.steps(2, state=before)[0]


def moments(run, mesh=None):
    """Arrays of the optimiser state, without scalars."""
    optimizer = make_optimizer(run.optimizer, run.train.steps)
    state = abstract_state(run, V, optimizer, mesh or small_run.one_device())
    return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]


def kept(run, before, after):
    """Paths of parameters that are the same bits; of those trained by rows, whether the other rows are."""
    parts, same = trained(run, V), set()
    for path, old in flatten(before).items():
        old, new = np.array(old), np.array(flatten(after)[path])
        if path in parts.ids:
            axis = parameter_table(run.model)[path].axes.index("vocab")
            ids = np.arange(parts.ids[path].start, parts.ids[path].stop)
            assert (np.take(old, ids, axis) != np.take(new, ids, axis)).mean() > 0.3, path
            old, new = np.delete(old, ids, axis), np.delete(new, ids, axis)
        if np.array_equal(old, new):
            same.add(path)
    return same


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("adafactor", "muon")]


@pytest.mark.parametrize("name", ["adamw", *_SLOW])
def test_only_the_rows_of_pictures_are_trained(pictures, name):
    run = small_run.changed(pictures.run, optimizer__name=name)
    runner = pictures if name == pictures.run.optimizer.name else Runner(run)
    before = runner.start()
    state, metrics = runner.steps(1, state=before)
    first = metrics.modalities[1]
    state, metrics = runner.steps(8, state=state)
    assert metrics.modalities[1][0] / metrics.modalities[1][1] < 0.95 * first[0] / first[1]
    assert kept(run, before.params, state.params) == set(parameter_table(run.model))
    rows = len(V.image) * run.model.dim
    assert sum(math.prod(leaf.shape) for leaf in moments(run)) <= 2 * (2 * rows) + 10  # factored ones are less


def test_a_frozen_projection_has_no_moments_and_follows_the_loss(run):
    assert {"perceptual/kernel", "perceptual/bias"} <= trained(run, V).table.keys()
    for changes in ({"loss__projection": "frozen"}, {"loss__perceptual_weight": 0.0}):
        other = small_run.changed(run, **changes)
        assert trained(run, V).table.keys() - trained(other, V).table.keys() == {"perceptual/kernel", "perceptual/bias"}
        assert len(moments(other)) == len(moments(run)) - 4


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layers/atention/*", r"'layers/atention/\*' names no parameter; there are embedder/embedding, "),
        ("embedder/embedding@picture", "'embedder/embedding@picture': write .* one of text, image, speech behind it"),
        ("final_norm/scale@image", "'final_norm/scale@image': write head/kernel or embedder/embedding before the @"),
        ("head/kernel@speech", "'head/kernel@speech' names head/kernel, as another pattern does"),
        ("perceptual/*", "names no parameter"),
    ],
)
def test_patterns_that_mean_nothing(run, pattern, message):
    with pytest.raises(UserError, match=message):
        trained(small_run.changed(run, train__trainable=("head/kernel@image", pattern)), V)


def test_adapters_begin_as_nothing_and_train_alone(adapted):
    run, before, after = adapted
    adapters = {path for path in parameter_table(run.model) if ADAPTER in path}
    tokens = jnp.asarray(small_run.batch(run).tokens)
    base = nest({path: leaf for path, leaf in flatten(before.params).items() if path not in adapters})
    hidden, _ = forward(before.params, run.model, tokens)
    np.testing.assert_array_equal(hidden, forward(base, dataclasses.replace(run.model, lora=LoraConfig()), tokens)[0])
    assert len(adapters) == 14 and kept(run, before.params, after.params) == set(parameter_table(run.model)) - adapters
    size = sum(math.prod(parameter_table(run.model)[path].shape) for path in adapters)
    assert sum(math.prod(leaf.shape) for leaf in moments(run)) == 2 * size


@pytest.mark.slow
def test_adapters_on_eight_devices_in_micro_batches(adapted):
    run, _, reference = adapted
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    runner = Runner(small_run.changed(run, train__accumulate_steps=4), mesh)
    abstract = abstract_state(run, V, runner.optimizer, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state, _ = runner.steps(2, state=jax.device_put(runner.start(), placed))
    query = state.params["layers"]["attention"]["query_lora"]
    assert query["a"].sharding.spec[1] == "fsdp" and query["b"].sharding.spec[2] == "tensor"
    assert not any(leaf.sharding.is_fully_replicated for leaf in moments(run, mesh))
    assert placed.average["layers"]["ffn"]["up_lora"] == placed.params["layers"]["ffn"]["up_lora"]
    assert_same_params(state, reference, **CLOSE)
    for path, leaf in flatten(reference.average).items():
        np.testing.assert_allclose(flatten(state.average)[path], leaf, atol=CLOSE["atol"])


def test_the_average_is_the_one_on_paper(pictures):
    state = pictures.start()
    wanted = {path: np.array(flatten(state.params)[path]) for path in ("embedder/embedding", "head/kernel")}
    begun = wanted["head/kernel"]

    def poisoned(batch):
        return dataclasses.replace(batch, loss_weights=np.full_like(batch.loss_weights, np.inf))

    for decay in (0.1, 2 / 11, None, 0.2, 0.2):
        before = state
        state, _ = pictures.steps(1, state=state, change=poisoned if decay is None else lambda batch: batch)
        if decay is None:  # a step that is skipped moves nothing
            assert_bit_equal(state.average, before.average)
            continue
        for path, old in wanted.items():
            wanted[path] = decay * old + (1 - decay) * np.array(flatten(state.params)[path])
    average = flatten(state.average)
    assert average.keys() == wanted.keys()
    for path, values in wanted.items():
        np.testing.assert_allclose(average[path], values, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(flatten(state.weights)[path], average[path])
    others = np.setdiff1d(np.arange(V.size), np.arange(V.image.start, V.image.stop))
    np.testing.assert_array_equal(average["head/kernel"][:, others], begun[:, others])
    assert flatten(state.weights)["layers/ffn/up"] is flatten(state.params)["layers/ffn/up"]


def test_no_average_no_byte(run):
    optimizer = make_optimizer(run.optimizer, run.train.steps)
    assert jax.tree.leaves(abstract_state(run, V, optimizer, small_run.one_device()).average) == []


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """A run of adapters with an average, on a base model; its config, folder and end."""
    folder = tmp_path_factory.mktemp("tuned")
    base = dataclasses.replace(run.model, perceptual_dim=0)
    save_model(folder / "base", init_params(base, jax.random.key(3)), base, V)
    changes = {"train__init_from": str(folder / "base"), "train__checkpoint_every": 3}
    run = small_run.changed(run, **LORA, **changes)
    return run, folder, start(run, folder / "run")


def test_adapters_and_average_resume_bit_equal(tuned, tmp_path):
    run, _, straight = tuned

    def die(line):
        if line.startswith("step 4/"):
            raise Killed

    with pytest.raises(Killed):
        start(run, tmp_path, die)
    assert store.complete_steps(tmp_path) == [3]
    resumed = start(run, tmp_path)
    assert_bit_equal(resumed.state, straight.state)
    assert resumed.held_out == straight.held_out
    for changes in ({"train__ema_decay": 0.0}, {"train__trainable": ("*",)}, {"model__lora": LoraConfig(rank=2)}):
        with pytest.raises(UserError, match=r"train\.ema_decay = 0\.5|other parameters were trained|model\.lora = "):
            start(small_run.changed(run, **changes), tmp_path)


def test_a_run_is_read_merged_and_averaged(tuned):
    run, folder, result = tuned
    base, merged = flatten(load_model(folder / "base").params), load_model(folder / "run")
    found = flatten(merged.params)
    assert merged.config == dataclasses.replace(run.model, lora=LoraConfig())
    assert found.keys() == flatten(abstract_params(merged.config)).keys()
    for path, leaf in base.items():
        np.testing.assert_array_equal(flatten(result.state.params)[path], leaf, err_msg=path)
        matrix = path.startswith("layers") and "norm" not in path
        assert np.array_equal(found[path], leaf) != matrix, path
    tokens = jnp.asarray(small_run.batch(run).tokens)
    weights = jax.device_get(result.state.weights)
    assert not np.array_equal(
        weights["layers"]["ffn"]["up_lora"]["b"], result.state.params["layers"]["ffn"]["up_lora"]["b"]
    )
    separate, _ = jax.jit(forward, static_argnums=1)(weights, run.model, tokens)
    np.testing.assert_allclose(merged(tokens)[1], separate, atol=2e-5)


def test_adapters_alone_for_peft(tuned, tmp_path):
    """The base with what PEFT adds to it is the merged model, tensor by tensor, under the names of `transformers`."""
    run, folder, _ = tuned
    for name, source, to in (("base", "base", "hf"), ("merged", "run", "hf"), ("adapters", "run", "peft")):
        with open_source(folder / source) as opened:
            convert(opened, tmp_path / name, to)
    assert sorted(file.name for file in (tmp_path / "adapters").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 4, 8.0, "none")
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    base, merged = (TensorFile(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    adapters = TensorFile(tmp_path / "adapters" / "adapter_model.safetensors")
    used = set()
    for name in base.tensors:
        tensor, (a, b) = (
            base.read(name),
            (f"base_model.model.{name.removesuffix('.weight')}.lora_{letter}.weight" for letter in "AB"),
        )
        if a in adapters.tensors:
            tensor = tensor + config["lora_alpha"] / config["r"] * adapters.read(b) @ adapters.read(a)
            used |= {a, b}
        np.testing.assert_allclose(merged.read(name), tensor, atol=1e-6, err_msg=name)
    assert used == adapters.tensors.keys() and len(used) == 2 * 7 * run.model.layers
    with open_source(folder / "base") as opened, pytest.raises(UserError, match="has no adapters"):
        convert(opened, tmp_path / "none", "peft")


def test_adapters_alone_are_refused_where_more_was_trained(tuned, tmp_path):
    shutil.copytree(tuned[1] / "run", tmp_path / "run")
    (file,) = (tmp_path / "run").glob("checkpoints/6/metadata/metadata")
    metadata = json.loads(file.read_text())
    metadata["config"]["train"]["trainable"] = ["*_lora/*", "head/kernel@image"]
    file.write_text(json.dumps(metadata))
    with (
        open_source(tmp_path / "run") as opened,
        pytest.raises(UserError, match="head/kernel was trained as well as adapters; convert to hf"),
    ):
        convert(opened, tmp_path / "adapters", "peft")
