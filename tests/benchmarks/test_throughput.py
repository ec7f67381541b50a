"""The peer computes what we compute: same loss, same gradients, same step; and the figures are what they say."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from aromni_jax import data
from aromni_jax.errors import UserError
from aromni_jax.model import flatten, init_params, nest, parameter_counts
from aromni_jax.training.step import Objective
from tests.training import small_run
from tests.training.small_run import CODEBOOK, VOCABULARY

torch = pytest.importorskip("torch")

import layouts  # noqa: E402
import machine  # noqa: E402
import reference_case  # noqa: E402
import throughput  # noqa: E402
import torch_peer  # noqa: E402


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    return small_run.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def packed(data_path):
    run = small_run.config(data_path)
    return list(itertools.islice(data.batches(run.data, run.loss, VOCABULARY), 4))


def _config(norm_order="swin"):
    return small_run.config("", model__norm_order=norm_order, optimizer__warmup_steps=0, optimizer__decay="constant")


def _random_params(config):
    """Starting values with nothing at its neutral value, so that a forgotten scale or bias shows."""
    rng = np.random.default_rng(0)
    flat = flatten(jax.device_get(init_params(config.model, jax.random.key(0))))
    return nest({path: value + rng.normal(0, 0.05, value.shape).astype(np.float32) for path, value in flat.items()})


@functools.cache
def _gradient(norm_order):
    objective = Objective(_config(norm_order), VOCABULARY)

    def value_and_grad(params, batch, codebook_kc):
        images_bs = objective.images(batch)
        denominators = objective.denominators(batch, images_bs)
        return jax.value_and_grad(objective, has_aux=True)(params, batch, images_bs, denominators, codebook_kc)

    return jax.jit(value_and_grad)


def _ours(config, params, batch):
    """Loss, and gradients by the peer's names."""
    (loss, _), gradients = _gradient(config.model.norm_order)(params, batch, CODEBOOK)
    return float(loss), torch_peer.torch_weights(jax.device_get(gradients))


def _theirs(config, params, batch):
    peer = torch_peer.TorchPeer(config, VOCABULARY, params, CODEBOOK)
    loss = peer.loss(batch)
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in peer.model.named_parameters()}


def _assert_close(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        np.testing.assert_allclose(ours[1][name], gradient, atol=2e-6, rtol=1e-4, err_msg=name)
        assert np.abs(gradient).max() > 1e-5, f"{name} gets no gradient: nothing was compared"


@pytest.mark.parametrize(("norm_order", "layout"), [("pre", "packed"), ("swin", "packed"), ("swin", "padded")])
def test_same_loss_and_gradients(packed, norm_order, layout):
    batch = packed[0] if layout == "packed" else layouts.padded(layouts.examples_of(packed)[:8], VOCABULARY.pad)
    config = _config(norm_order)
    params = _random_params(config)
    _assert_close(_ours(config, params, batch), _theirs(config, params, batch))


def test_the_comparison_can_fail(packed):
    """A peer that looks across the border of two packed examples is found out, and so is one other weight."""
    config, batch = _config(), packed[0]
    params = _random_params(config)
    ours = _ours(config, params, batch)
    leaky = dataclasses.replace(batch, segment_ids=np.minimum(batch.segment_ids, 1))
    with pytest.raises(AssertionError):
        _assert_close(ours, _theirs(config, params, leaky))
    params["layers"]["attention"]["key_norm"]["bias"][0, 0, 0] += 0.5
    with pytest.raises(AssertionError):
        _assert_close(ours, _theirs(config, params, batch))


def test_steps_agree_and_compile_once(packed):
    config = _config()
    ours, peer = throughput.both_sides(config, VOCABULARY, CODEBOOK)
    lines = []
    worst = throughput.check_agreement((ours, peer), packed, lines.append)
    assert len(lines) == len(packed) and worst["loss_difference"] < 1e-5
    for batch in packed:
        for side in (ours, peer):
            side.step(batch)
    assert ours.programs == 1
    assert ours.outcome() == pytest.approx(peer.outcome(), rel=1e-3)
    state = peer.model.state_dict()
    for name, weight in torch_peer.torch_weights(ours.params).items():
        # Adam's first steps turn rounding of tiny gradients into steps of up to the whole rate, 1e-2.
        assert np.median(np.abs(weight - state[name].numpy())) < 1e-5, name


def test_sides_that_differ_are_not_timed(packed):
    class Other:
        name = "other"

        def restart(self): ...

        def step(self, batch): ...

        def outcome(self):
            return float("nan"), 1.0

    peer = torch_peer.TorchPeer(_config(), VOCABULARY, _random_params(_config()), CODEBOOK)
    with pytest.raises(UserError, match="PyTorch and other do not compute the same"):
        throughput.check_agreement((peer, Other()), packed[:1], lambda line: None)


def _reference():
    """The reference's case with a model and rows small enough for a test."""
    small = {"dim": 32, "layers": 1, "kv_heads": 2, "heads": 2, "head_dim": 8, "ffn_dim": 48}
    sizes = {f"model__{name}": size for name, size in small.items()} | {"data__sequence_length": 24}
    return small_run.changed(reference_case.reference_config(), **sizes)


def test_the_reference_case_is_that_of_its_figures():
    config = reference_case.reference_config()
    assert parameter_counts(config.model)["total"] == 6_918_144
    (batch,) = reference_case.full_rows(config, reference_case.VOCABULARY, 1)
    assert batch.tokens.shape == (4, 512) and layouts.useful([batch]) == 2048
    assert set(batch.tokens.ravel()) <= set(range(config.model.vocab_size))
    # The last quarter but for eos weighs twofold; nothing predicts the first token.
    assert batch.loss_weights[0].tolist() == [0.0] + [1.0] * 382 + [2.0] * 128 + [1.0]


def test_the_reference_case_agrees():
    config = _reference()
    rows = reference_case.full_rows(config, reference_case.VOCABULARY, 2)
    ours, peer = throughput.both_sides(config, reference_case.VOCABULARY, None)
    worst = throughput.check_agreement((ours, peer), rows, lambda line: None)
    assert worst["loss_difference"] < 1e-5 and worst["gradient_norm_difference"] < 1e-4
    for batch in rows:
        for side in (ours, peer):
            side.step(batch)
    assert ours.programs == 1
    assert ours.outcome() == pytest.approx(peer.outcome(), rel=1e-4)
    flat = dataclasses.replace(rows[0], loss_weights=np.minimum(rows[0].loss_weights, 1.0))
    ours.restart(), ours.step(flat)
    peer.restart(), peer.step(rows[0])
    assert abs(ours.outcome()[0] - peer.outcome()[0]) > 1e-4, "the tail's weight does not show"


def test_padded_rows_hold_the_packed_examples(packed):
    examples = layouts.examples_of(packed)
    batch = layouts.padded(examples, VOCABULARY.pad)
    assert layouts.useful([batch]) == layouts.useful(packed) == sum(len(example["tokens"]) for example in examples)
    assert batch.tokens.shape == (len(examples), max(len(example["tokens"]) for example in examples))
    assert (batch.tokens[:, 0] == VOCABULARY.bos).all()
    assert (batch.tokens[batch.segment_ids == 0] == VOCABULARY.pad).all()
    assert not batch.loss_weights[batch.segment_ids == 0].any()
    last_b = batch.segment_ids.sum(axis=1) - 1
    assert (batch.tokens[np.arange(len(examples)), last_b] == VOCABULARY.eos).all()
    assert (batch.positions.max(axis=1) == last_b).all()


def test_padded_batches_stand_for_all_lots(packed):
    every = layouts.padded_batches(packed, 4, len(layouts.examples_of(packed)) // 4, VOCABULARY.pad)
    few = layouts.padded_batches(packed, 4, 3, VOCABULARY.pad)
    lengths = [batch.tokens.shape[1] for batch in every]
    assert lengths == sorted(lengths)
    assert [batch.tokens.shape[1] for batch in few] == [lengths[(2 * i + 1) * len(every) // 6] for i in range(3)]
    with pytest.raises(UserError, match="99 are wanted"):
        layouts.padded_batches(packed, 4, 99, VOCABULARY.pad)


def test_the_table_says_what_was_measured(packed):
    class Clocked:
        def __init__(self, name):
            self.name, self.steps = name, []

        def restart(self): ...

        def step(self, batch):
            self.steps.append(batch)

        def outcome(self):
            return 1.0, 1.0

    sides = Clocked("ours"), Clocked("PyTorch")
    padded = [layouts.padded(layouts.examples_of(packed)[:4], VOCABULARY.pad)]
    in_turn = {"packed rows": packed[:2], "padded": padded}
    others = Clocked("ours"), Clocked("PyTorch")
    times = throughput.measure([(sides, in_turn), (others, {"full": packed[2:3]})], 2, lambda line: None)
    assert [len(times[layout][side.name]) for layout in (*in_turn, "full") for side in sides] == [2] * 6
    assert [id(batch) for batch in sides[0].steps] == [id(batch) for batch in sides[1].steps]
    assert [id(batch) for side in others for batch in side.steps] == [id(packed[2])] * 8

    times = {
        "packed rows": {"ours": [1.0, 2.0], "PyTorch": [2.0, 2.0]},
        "padded": {"ours": [1.0] * 2, "PyTorch": [4.0] * 2},
    }
    rows = throughput.side_rows(in_turn, times)
    rows.append(throughput.useful_row(rows[0], rows[-1]))
    assert [row["what"] for row in rows[:4]] == [
        f"{side}, {layout}" for layout in in_turn for side in ("ours", "PyTorch")
    ]
    assert rows[0]["tokens_per_second"]["max"] == layouts.slots(packed[:2])
    assert rows[0]["ratio"]["values"] == [2.0, 1.0] and rows[1]["ratio"] is None
    useful = layouts.useful(packed[:2]) / layouts.useful(padded)
    assert rows[4]["ratio"]["values"] == pytest.approx([4 * useful, 2 * useful])
    result = {
        "rows": rows,
        "hardware": machine.hardware() | {"cpu_share_of_others": 0.2},
        "versions": machine.versions(["jax"]),
        "date": "2026-01-01",
        "run": {"repeats": 2, "steps": 2, "cases": {"demo": {"parameters": 1}, "reference": {"parameters": 2345}}},
        "check": {"loss_difference": 1e-6},
    }
    text = throughput.markdown(result)
    assert "| ours, packed rows | 8 x 32 |" in text and "not to be quoted" in text
    assert "demo: 1 parameters, reference: 2,345 parameters" in text


def test_missing_data_is_one_line(tmp_path, capsys, monkeypatch):
    arguments = ["throughput.py", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", arguments)
    assert throughput.main() == 1
    error = capsys.readouterr().err
    assert "no such file" in error and error.count("\n") == 1
