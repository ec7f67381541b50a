"""The step's equalities: accumulation, rematerialisation, sharding, skipping; and that each of them can fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.config import MeshConfig
from aromni_jax.model import flatten
from aromni_jax.parallel import batch_sharding, make_mesh
from aromni_jax.training import abstract_state, make_eval_step, make_optimizer, make_state, make_train_step
from aromni_jax.training.metrics import summary
from tests.training import small_run

# One step of small_run's model on its first batch, from seed 0. A change of model, loss, data or initialisation that is
# meant to change the numbers may change these too; a refactoring may not.
GOLDEN = {
    "ntp_loss": 4.2308933,
    "perceptual_loss": 1.0369365,
    "loss": 4.7493615,
    "loss/text": 4.259036,
    "loss/image": 4.2190574,
    "loss/speech": 4.2329098,
    "tokens/marker": 84.0,
    "grad_norm": 2.352927,
}


class Runner:
    """Takes steps of a run config on a mesh."""

    def __init__(self, run, mesh=None):
        self.run = run
        self.mesh = mesh or small_run.one_device()
        self.optimizer = make_optimizer(run.optimizer, run.train.steps)
        self.step = jax.jit(make_train_step(run, small_run.VOCABULARY, self.optimizer))

    def start(self):
        with jax.set_mesh(self.mesh):
            make = jax.jit(lambda key: make_state(self.run, small_run.VOCABULARY, self.optimizer, key))
            return small_run.placed(self.mesh, make(jax.random.key(self.run.train.seed)))

    def steps(self, count, state=None, change=lambda batch: batch):
        """State and metrics after `count` steps."""
        state = state or self.start()
        codebook = small_run.placed(self.mesh, small_run.CODEBOOK)
        for index in range(count):
            batch = jax.device_put(change(small_run.batch(self.run, index)), batch_sharding(self.mesh))
            with jax.set_mesh(self.mesh):
                state, metrics = self.step(state, batch, codebook)
        return state, jax.device_get(metrics)


@pytest.fixture(scope="module")
def run(data_path):
    return small_run.config(data_path)


@pytest.fixture(scope="module")
def reference(run):
    """Two plain steps on one device."""
    return Runner(run).steps(2)


def assert_same_params(one, other, **tolerance):
    for (name, a), b in zip(flatten(one.params).items(), flatten(other.params).values(), strict=True):
        np.testing.assert_allclose(a, b, err_msg=name, **tolerance)


# Adam's first updates are the signs of the gradients, so a parameter with a tiny gradient can move by a whole learning
# rate on rounding alone: parameters agree to a fraction of the largest rate, and the losses much better.
CLOSE = {"rtol": 0.0, "atol": 2e-4}


def test_golden_metrics_of_one_step(run):
    _, metrics = Runner(run).steps(1)
    values = summary(metrics, run.loss.perceptual_weight)
    np.testing.assert_allclose([values[name] for name in GOLDEN], list(GOLDEN.values()), rtol=1e-4)


def test_accumulation_equals_the_big_batch(run, reference):
    state, metrics = Runner(small_run.changed(run, train__accumulate_steps=4)).steps(2)
    assert_same_params(state, reference[0], **CLOSE)
    np.testing.assert_allclose(metrics.weighted_loss, reference[1].weighted_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.modalities, reference[1].modalities, rtol=1e-4)
    np.testing.assert_allclose(metrics.grad_norm, reference[1].grad_norm, rtol=1e-4)
    assert metrics.steps == 1 and metrics.slots == reference[1].slots


def test_the_mean_of_micro_batch_means_is_another_gradient(run, reference):
    """The reference's reading; and the proof that the test above can fail."""
    accumulated = small_run.changed(run, train__accumulate_steps=4, loss__normalise="micro_batch")
    _, metrics = Runner(accumulated).steps(2)
    assert abs(metrics.grad_norm - reference[1].grad_norm) > 1e-3 * reference[1].grad_norm
    one_micro_batch, _ = Runner(small_run.changed(run, loss__normalise="micro_batch")).steps(2)
    assert_same_params(one_micro_batch, reference[0], rtol=0, atol=0)


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.slow)])
def test_rematerialisation_changes_nothing(run, reference, remat):
    changed = small_run.changed(run, model__remat=remat)
    state, metrics = Runner(changed).steps(2)
    assert_same_params(state, reference[0], **CLOSE)
    np.testing.assert_allclose(metrics.weighted_loss, reference[1].weighted_loss, rtol=1e-5)


def test_rematerialisation_is_really_on(run):
    """Its program has more products than the plain one, so the test above compares two programs."""
    products = {}
    for remat in ("none", "dots", "qkv", "full"):
        runner = Runner(small_run.changed(run, model__remat=remat))
        state = abstract_state(run, small_run.VOCABULARY, runner.optimizer, runner.mesh)
        with jax.set_mesh(runner.mesh):
            program = runner.step.lower(state, small_run.batch(run), small_run.CODEBOOK).as_text()
        products[remat] = program.count("dot_general")
    assert products["full"] > products["qkv"] > products["dots"] > products["none"]


def test_eight_devices_equal_one(run, reference):
    runner = Runner(run, make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2)))
    abstract = abstract_state(run, small_run.VOCABULARY, runner.optimizer, runner.mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state, metrics = runner.steps(2, state=jax.device_put(runner.start(), placed))
    kernel = state.params["layers"]["ffn"]["gate"]
    moment = next(leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape)
    assert len(kernel.addressable_shards) == 8 and kernel.addressable_shards[0].data.size < kernel.size
    assert moment.sharding.is_equivalent_to(kernel.sharding, kernel.ndim)
    assert_same_params(state, reference[0], **CLOSE)
    np.testing.assert_allclose(metrics.weighted_loss, reference[1].weighted_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.tasks, reference[1].tasks, rtol=1e-4)


def sums(jaxpr):
    """(what, dtype of what is added) of every sum and scattered addition of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("reduce_sum", "cumsum", "scatter-add"):
            yield equation.primitive.name, equation.invars[-1].aval.dtype.name
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from sums(inner)


@pytest.mark.parametrize("tile", [0, 16])
def test_no_sum_over_tokens_in_half_precision(run, tile):
    """It would lose most of what is added. Products are left out: they keep their sums in float32 by themselves."""
    half = small_run.changed(run, model__compute_dtype="bfloat16", model__logits_tile=tile, model__remat="full")
    runner = Runner(half)
    state = abstract_state(half, small_run.VOCABULARY, runner.optimizer, runner.mesh)
    with jax.set_mesh(runner.mesh):
        program = jax.make_jaxpr(runner.step)(state, small_run.batch(half), small_run.CODEBOOK)
    found = set(sums(program.jaxpr))
    assert {("reduce_sum", "float32"), ("scatter-add", "float32")} <= found and "bf16" in str(program)
    assert not [name for name, dtype in found if dtype == "bfloat16"]


def test_a_wrong_batch_is_noticed(run, reference):
    """The comparisons above can fail: one token's weight changes the parameters beyond their tolerance."""

    def heavier(batch):
        weights = batch.loss_weights.copy()
        weights[0, 3] += 4
        return dataclasses.replace(batch, loss_weights=weights)

    state, _ = Runner(run).steps(2, change=heavier)
    with pytest.raises(AssertionError):
        assert_same_params(state, reference[0], **CLOSE)


def test_one_compilation_for_all_steps(run):
    runner = Runner(run)
    runner.steps(4)
    assert runner.step._cache_size() == 1


def test_a_step_that_is_not_finite_is_skipped_and_counted(run):
    runner = Runner(run)
    before, _ = runner.steps(1)

    def poisoned(batch):
        return dataclasses.replace(batch, loss_weights=np.full_like(batch.loss_weights, np.inf))

    after, metrics = runner.steps(1, state=before, change=poisoned)
    assert int(after.step) == 2 and int(after.skipped) == 1
    assert metrics.skipped == 1 and metrics.steps == 1 and metrics.weight == 0
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(before.opt_state), jax.tree.leaves(after.opt_state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))
    healthy, _ = runner.steps(1, state=after)
    assert int(healthy.skipped) == 1
    assert not np.array_equal(healthy.params["head"]["kernel"], after.params["head"]["kernel"])


def test_a_frozen_projection_stays_and_the_rest_learns(run, reference):
    frozen, metrics = Runner(small_run.changed(run, loss__projection="frozen")).steps(2)
    start = Runner(run).start()
    np.testing.assert_array_equal(frozen.params["perceptual"]["kernel"], start.params["perceptual"]["kernel"])
    assert not np.array_equal(reference[0].params["perceptual"]["kernel"], start.params["perceptual"]["kernel"])
    assert metrics.perceptual_count == reference[1].perceptual_count > 0


def test_counts_of_the_metrics(run):
    """Every target with weight is in one modality and one task."""
    _, metrics = Runner(run).steps(1)
    batch = small_run.batch(run)
    targets = int((batch.loss_weights > 0).sum())
    assert metrics.modalities[:, 1].sum() == metrics.tasks[:, 1].sum() == targets
    assert metrics.tokens == (batch.segment_ids > 0).sum() and metrics.slots == batch.tokens.size
    kinds = small_run.VOCABULARY.modality(batch.tokens)
    assert metrics.modalities[1, 1] == ((kinds == 1) & (batch.loss_weights > 0)).sum()
    assert metrics.perceptual_count == 4 * np.unique(_pictures(batch)).size


def _pictures(batch):
    """Places of the pictures that text_to_image examples answer with."""
    boi = (batch.tokens == small_run.VOCABULARY.boi) & (batch.task_ids == 2)
    return np.flatnonzero(boi)


def test_evaluation_measures_what_training_does(run):
    runner = Runner(run)
    state = runner.start()
    batch = small_run.placed(runner.mesh, small_run.batch(run))
    with jax.set_mesh(runner.mesh):
        held_out = jax.jit(make_eval_step(run, small_run.VOCABULARY))(
            state.params, batch, jnp.asarray(small_run.CODEBOOK)
        )
    _, trained = runner.steps(1, state=state)
    np.testing.assert_allclose(held_out.modalities, trained.modalities, rtol=1e-5)
    assert held_out.steps == 0
