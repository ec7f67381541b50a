"""One optimiser step, and one evaluation step, as pure functions of state and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aromni_jax.config import RunConfig
from aromni_jax.data import Batch
from aromni_jax.losses import image_span_mask, next_token_denominator, perceptual, weighted_next_token
from aromni_jax.model import Params, flatten, forward, nest, trained
from aromni_jax.parallel import scan, shard
from aromni_jax.training.metrics import Metrics, group_sums
from aromni_jax.training.state import TrainState
from aromni_jax.vocabulary import TASKS, JointVocabulary, Modality, task_id

TrainStep = Callable[[TrainState, Batch, jax.Array | None], tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, Batch, jax.Array | None], Metrics]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The training objective of a run: weighted next-token loss plus weighted perceptual loss (SPEC 4)."""

    config: RunConfig
    vocabulary: JointVocabulary

    def denominators(self, batch: Batch, images_bs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the two sums over `batch` are divided by."""
        targets = next_token_denominator(batch.loss_weights, batch.segment_ids, self.config.loss.normalise)
        return targets, jnp.maximum(jnp.sum(images_bs).astype(jnp.float32), 1.0)

    def images(self, batch: Batch) -> jax.Array:
        """bool [b, s]: image tokens that take part in the perceptual loss."""
        tasks = self.config.loss.perceptual_tasks or TASKS
        takes_part = np.isin(np.arange(len(TASKS)), [task_id(task) for task in tasks])
        counted_bs = (batch.loss_weights > 0) & jnp.asarray(takes_part)[batch.task_ids]
        vocabulary = self.vocabulary
        return image_span_mask(batch.tokens, counted_bs, boi=vocabulary.boi, image_tokens=vocabulary.image_tokens)

    def __call__(
        self,
        params: Params,
        batch: Batch,
        images_bs: jax.Array,
        denominators: tuple[jax.Array, jax.Array],
        codebook_kc: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        """Loss of these rows, each term divided by its denominator; and their metrics.

        Args:
          codebook_kc: of the image codec; None leaves the perceptual term out.
        """
        model, loss = self.config.model, self.config.loss
        hidden_bsd, _ = forward(params, model, batch.tokens, batch.positions, batch.segment_ids, shard=shard)
        token = weighted_next_token(
            hidden_bsd,
            params["head"]["kernel"],
            batch.tokens,
            batch.loss_weights,
            batch.segment_ids,
            denominator=denominators[0],
            z_loss=loss.z_loss,
            tile=model.logits_tile,
        )
        total, image_loss = token.loss, jnp.zeros((), jnp.float32)
        if codebook_kc is not None:
            image = perceptual(
                hidden_bsd,
                params["perceptual"],
                codebook_kc,
                batch.tokens,
                images_bs,
                image_start=self.vocabulary.image.start,
                align=loss.align,
                reduce=loss.reduce,
                denominator=denominators[1],
            )
            total += loss.perceptual_weight * image.loss
            image_loss = image.loss * denominators[1]
        counts_bs = token.weights_bs > 0
        kinds_bs = jnp.asarray(self.vocabulary.modality(np.arange(self.vocabulary.size)))[batch.tokens]
        zero = jnp.zeros((), jnp.float32)
        return total, Metrics(
            weighted_loss=jnp.sum(token.ce_bs * token.weights_bs),
            weight=jnp.sum(token.weights_bs),
            perceptual_loss=image_loss,
            perceptual_count=jnp.sum(images_bs, dtype=jnp.float32) if codebook_kc is not None else zero,
            modalities=group_sums(kinds_bs, len(Modality), token.ce_bs, token.correct_bs, counts_bs),
            tasks=group_sums(batch.task_ids, len(TASKS), token.ce_bs, token.correct_bs, counts_bs),
            tokens=jnp.sum(batch.segment_ids > 0, dtype=jnp.float32),
            slots=jnp.full((), batch.tokens.size, jnp.float32),
            steps=zero,
            skipped=zero,
            grad_norm=zero,
        )


def make_train_step(
    config: RunConfig, vocabulary: JointVocabulary, optimizer: optax.GradientTransformation
) -> TrainStep:
    """(state, batch, codebook) -> (state, metrics): gradient, clip, update; to be jitted with the state donated.

    Gradients and optimiser know only what is trained (`model.trained`); nothing else changes, not by a bit.

    With `accumulate_steps` the batch is cut into that many micro-batches. Each one's sums are divided by the totals of
    the whole batch, so the gradient is that of the whole batch; only normalise="micro_batch" averages the
    micro-batches' own means, as the reference does.

    A step whose loss or gradient is not finite leaves parameters and optimiser as they are and is counted; `step` goes
    on, so that the batch is not met again.
    """
    objective, parts = Objective(config, vocabulary), trained(config, vocabulary)

    def train_step(state: TrainState, batch: Batch, codebook_kc: jax.Array | None) -> tuple[TrainState, Metrics]:
        old = parts.take(state.params)
        gradient = jax.value_and_grad(lambda own, *rest: objective(parts.put(state.params, own), *rest), has_aux=True)
        if config.train.accumulate_steps == 1:
            images_bs = objective.images(batch)
            denominators = objective.denominators(batch, images_bs)
            (loss, metrics), grads = gradient(old, batch, images_bs, denominators, codebook_kc)
        else:
            (loss, metrics), grads = _accumulate(objective, gradient, old, batch, codebook_kc)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        updates, opt_state = optimizer.update(grads, state.opt_state, old)
        params = parts.put(state.params, optax.apply_updates(old, updates))
        average = _moved(state, params, config.train.ema_decay)
        # `where` on every leaf: fused with the update itself, and no branch that would keep both copies alive.
        params, opt_state, average = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, average),
            (state.params, state.opt_state, state.average),
        )
        metrics = dataclasses.replace(metrics, grad_norm=norm)
        metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), metrics)
        metrics = dataclasses.replace(
            metrics,
            slots=jnp.full((), batch.tokens.size, jnp.float32),
            steps=jnp.ones((), jnp.float32),
            skipped=1.0 - finite.astype(jnp.float32),
        )
        skipped = state.skipped + jnp.logical_not(finite).astype(jnp.int32)
        return TrainState(state.step + 1, params, opt_state, skipped, average), metrics

    return train_step


def make_eval_step(config: RunConfig, vocabulary: JointVocabulary) -> EvalStep:
    """(params, batch, codebook) -> metrics, with the same weights and groups as in training."""
    objective = Objective(config, vocabulary)

    def eval_step(params: Params, batch: Batch, codebook_kc: jax.Array | None) -> Metrics:
        images_bs = objective.images(batch)
        return objective(params, batch, images_bs, objective.denominators(batch, images_bs), codebook_kc)[1]

    return eval_step


def _moved(state: TrainState, params: Params, most: float) -> Params:
    """The average after one more update; what has not changed stays as it is, to the bit."""
    updates = (state.step - state.skipped).astype(jnp.float32)
    decay = jnp.minimum(most, (1 + updates) / (10 + updates))
    new = flatten(params)
    return nest({path: old + (1 - decay) * (new[path] - old) for path, old in flatten(state.average).items()})


def _accumulate(
    objective: Objective, gradient: Callable, own: Params, batch: Batch, codebook_kc: jax.Array | None
) -> tuple[tuple[jax.Array, Metrics], Params]:
    """Sum of the micro-batches' gradients (float32) of what is trained, losses and metrics, in a loop."""
    count = objective.config.train.accumulate_steps
    by_micro_batch = objective.config.loss.normalise == "micro_batch"
    totals = objective.denominators(batch, objective.images(batch))

    def step(carry: tuple, rows: Batch) -> tuple[tuple, None]:
        images_bs = objective.images(rows)
        denominators = totals
        if by_micro_batch:
            denominators = jax.tree.map(lambda own: own * count, objective.denominators(rows, images_bs))
        new = gradient(own, rows, images_bs, denominators, codebook_kc)
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), carry, new), None

    micro_batches = jax.tree.map(lambda x_bs: _split_rows(x_bs, count), batch)
    shapes = jax.eval_shape(gradient, own, batch, batch.tokens > 0, totals, codebook_kc)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    result, _ = scan(step, zeros, micro_batches)
    return result


def _split_rows(x_bs: jax.Array, count: int) -> jax.Array:
    """[b, s] -> [count, b / count, s]: every device keeps its own rows, each micro-batch takes some of all devices'."""
    b, s = x_bs.shape
    return shard(x_bs.reshape(b // count, count, s).swapaxes(0, 1), None, "batch", "seq")
