"""Loops with collectives in them: as they are, and unrolled where XLA's CPU runtime would lose their order."""

import jax
import jax.numpy as jnp
import pytest

from aromni_jax.parallel import batch_sharding, scan
from aromni_jax.training import make_eval_step, make_optimizer, make_state, make_train_step
from tests.training import small_run


@pytest.fixture(params=[1, 2])
def processes(request, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: request.param)
    return request.param


def test_scan_gives_what_jax_s_gives(processes):
    def step(total, x):
        return total + x, total * x

    xs = jnp.arange(7.0)
    program = jax.jit(lambda xs: scan(step, jnp.zeros(()), xs)).lower(xs)
    assert ("stablehlo.while" in program.as_text()) == (processes == 1)
    wanted = jax.lax.scan(step, jnp.zeros(()), xs)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), program.compile()(xs), wanted))


def test_no_loop_of_a_step_is_left_to_several_processes(processes, tmp_path):
    """Layers, tiles of the vocabulary, micro-batches; forward and backward."""
    run = small_run.config(small_run.write_data(tmp_path), model__logits_tile=16, train__accumulate_steps=2)
    mesh, optimizer = small_run.one_device(), make_optimizer(run.optimizer, run.train.steps)
    steps = make_train_step(run, small_run.VOCABULARY, optimizer), make_eval_step(run, small_run.VOCABULARY)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda key: make_state(run, small_run.VOCABULARY, optimizer, key), jax.random.key(0))
        batch = jax.device_put(small_run.batch(run), batch_sharding(mesh))
        given = (state, batch, small_run.CODEBOOK), (state.params, batch, small_run.CODEBOOK)
        texts = [jax.jit(step).lower(*arguments).as_text() for step, arguments in zip(steps, given, strict=True)]
    assert ["stablehlo.while" in text for text in texts] == [processes == 1] * 2
