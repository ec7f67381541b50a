"""Fitting of a vector-quantised autoencoder: first without, then with the codebook.

The codebook starts as the k-means of what the encoder says after a fifth of the steps, and then follows it by
moving averages; the network learns through the straight-through estimator. At the end encoder and codebook stand
still, and the decoder alone learns to make the best of the codes, against a critic if the task has one.
"""

import dataclasses
import enum
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from aromni_jax.codecs import vq
from aromni_jax.errors import UserError

Batch = dict[str, Any]
_KMEANS_VECTORS = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast.

    Attributes:
      steps: in all, 1 at least.
      free_share, settle_share: parts of them before the codebook comes in, and after it stands still.
      peak_lr: after `warmup` steps (half of those before the settling, if that is less); falls along a cosine to 3 %,
        and from a half of it again when settling.
      commitment: weight of the pull of the encoder towards its codes.
    """

    steps: int
    peak_lr: float = 2e-3
    warmup: int = 50
    free_share: float = 0.2
    settle_share: float = 0.2
    commitment: float = 0.25
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hint:
    """A reader beside the decoder: what the labels of the training data say must be legible in the codes.

    Attributes:
      build: makes its network. loss: (network, vectors, batch) -> scalar. weight: of that loss.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    loss: Callable[[Any, jax.Array, Batch], jax.Array]
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Critic:
    """A network that learns to tell decoded from real, and so teaches the decoder what a mean over guesses lacks.

    Hinge losses (Lim and Ye 2017, arXiv 1705.02894); it takes part only while the decoder settles, so that the codes
    do not depend on it.

    Attributes:
      build: makes its network, which maps what `view` gives to scores of any shape.
      view: (decoded or real, batch) -> its input. weight: of its judgement in the decoder's loss.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    view: Callable[[jax.Array, Batch], jax.Array]
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is fitted.

    Attributes:
      build: makes the network. codes: size of the codebook. encoder: its attributes that make up the encoder.
      encode: (network, batch) -> vectors [..., e] and, of the same shape without e, 1 where a vector counts.
      decode: (network, vectors, batch) -> what the decoder makes. real: (batch) -> what it should have made.
      loss: (decoded, real, batch) -> scalar.
      hint, critic: no part of the result.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    codes: int
    encoder: frozenset[str]
    encode: Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
    decode: Callable[[Any, jax.Array, Batch], jax.Array]
    real: Callable[[Batch], jax.Array]
    loss: Callable[[jax.Array, jax.Array, Batch], jax.Array]
    hint: Hint | None = None
    critic: Critic | None = None


class Phase(enum.Enum):
    """FREE: no codebook. QUANTISED: encoder, codebook and decoder learn together. SETTLED: only the decoder learns."""

    FREE, QUANTISED, SETTLED = range(3)


def fit(task: Task, batches: Iterator[Batch], config: FitConfig) -> tuple[vq.Params, list[float]]:
    """-> {"net": nested dict, "codebook": float32 [k, e]} and the loss of every step.

    Raises UserError: no steps, or more codes than vectors that a codebook begins with.
    """
    if config.steps < 1:
        raise UserError(f"{config.steps} steps: at least one is needed")
    if not 1 <= task.codes <= _KMEANS_VECTORS:
        raise UserError(f"{task.codes} codes: a codebook has 1 to {_KMEANS_VECTORS}")
    free = round(config.steps * config.free_share)
    settle = config.steps - round(config.steps * config.settle_share)
    low, high = 0.03 * config.peak_lr, config.peak_lr
    schedule = optax.join_schedules(
        [
            optax.warmup_cosine_decay_schedule(0.0, high, min(config.warmup, settle // 2), settle, low),
            optax.cosine_decay_schedule(0.5 * high, max(1, config.steps - settle), low / high),
        ],
        [settle],
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=1e-3))
    run_step = make_step(task, optimizer, config.commitment)

    @jax.jit
    def vectors(params: vq.Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return task.encode(vq.with_params(task.build, params["net"]), batch)

    params = {"net": vq.init(task.build, config.seed)}
    for number, (name, helper) in enumerate((("hint", task.hint), ("critic", task.critic)), start=1):
        if helper:
            params[name] = vq.init(helper.build, config.seed + number)
    moments, losses = optimizer.init(params), []
    book: vq.Params | None = None
    keys = iter(jax.random.split(jax.random.key(config.seed), config.steps + 1))
    bar = tqdm(range(config.steps), desc="codec", file=sys.stderr, mininterval=2.0)
    for index in bar:
        if index == free:
            book = _first_codebook(functools.partial(vectors, params), batches, task.codes, next(keys))
        phase = Phase.FREE if index < free else Phase.QUANTISED if index < settle else Phase.SETTLED
        params, moments, book, loss = run_step(params, moments, book, next(batches), next(keys), phase)
        losses.append(loss)
        if index % 20 == 19:
            bar.set_postfix(loss=f"{float(np.mean(losses[-20:])):.4f}", refresh=False)
    assert book is not None, "free_share is below 1"
    return {"net": params["net"], "codebook": vq.codebook_of(book)}, [float(loss) for loss in losses]


def make_step(task: Task, optimizer: optax.GradientTransformation, commitment: float) -> Callable[..., tuple]:
    """One step: (params, moments, codebook averages or None, batch, key, phase) -> the first three anew, and the loss.

    `params` is {"net": ..., and "hint" and "critic" where the task has them}.
    """

    def total_loss(
        params: vq.Params, codebook_ke: jax.Array | None, batch: Batch, phase: Phase
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        net = vq.with_params(task.build, params["net"])
        z, counts = task.encode(net, batch)
        weights = counts[..., None] / counts.sum()
        if codebook_ke is None:
            # A light pull to zero keeps the vectors at a scale that k-means and commitment can work with.
            loss = 1e-3 * jnp.sum(weights * z**2)
            codes, decoded = jnp.full(counts.shape, -1), z
        else:
            codes = vq.nearest(codebook_ke, z)
            quantised = codebook_ke[codes]
            loss = commitment * jnp.sum(weights * (z - jax.lax.stop_gradient(quantised)) ** 2) / z.shape[-1]
            codes, decoded = jnp.where(counts > 0, codes, -1), vq.straight_through(z, quantised)
        made, real = task.decode(net, decoded, batch), task.real(batch)
        loss += task.loss(made, real, batch)
        if task.critic and phase is Phase.SETTLED:
            loss += _contest(task.critic, params["critic"], made, real, batch)
        if task.hint and phase is not Phase.SETTLED:
            loss += task.hint.weight * task.hint.loss(vq.with_params(task.hint.build, params["hint"]), decoded, batch)
        return loss, (z.reshape(-1, z.shape[-1]), codes.reshape(-1))

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2), static_argnames="phase")
    def run_step(
        params: vq.Params, moments: Any, book: vq.Params | None, batch: Batch, key: jax.Array, phase: Phase
    ) -> tuple:
        codebook_ke = None if book is None else vq.codebook_of(book)
        (loss, (z_ne, codes_n)), gradients = jax.value_and_grad(total_loss, has_aux=True)(
            params, codebook_ke, batch, phase
        )
        updates, moments = optimizer.update(gradients, moments, params)
        if phase is Phase.SETTLED:
            still = {name: jax.tree.map(jnp.zeros_like, updates["net"][name]) for name in task.encoder}
            updates = {**updates, "net": {**updates["net"], **still}}
        elif book is not None:
            book = vq.update_codebook(book, z_ne, codes_n, key)
        return optax.apply_updates(params, updates), moments, book, loss

    return run_step


def _contest(critic: Critic, params: vq.Params, made: jax.Array, real: jax.Array, batch: Batch) -> jax.Array:
    """Hinge losses of both sides; neither's gradient reaches the other's parameters."""

    def score(values: vq.Params, picture: jax.Array) -> jax.Array:
        return vq.with_params(critic.build, values)(critic.view(picture, batch))

    frozen = jax.lax.stop_gradient
    told = jnp.mean(jax.nn.relu(1 - score(params, real))) + jnp.mean(jax.nn.relu(1 + score(params, frozen(made))))
    return told - critic.weight * jnp.mean(score(frozen(params), made))


def _first_codebook(
    vectors: Callable[[Batch], tuple[jax.Array, jax.Array]], batches: Iterator[Batch], codes: int, key: jax.Array
) -> vq.Params:
    found: list[np.ndarray] = []
    while sum(len(z) for z in found) < _KMEANS_VECTORS:
        z, counts = map(np.asarray, vectors(next(batches)))
        found.append(z[counts > 0])
    x_ne = jnp.asarray(np.concatenate(found)[:_KMEANS_VECTORS])
    return vq.codebook_state(vq.kmeans(key, x_ne, codes), float(len(found[-1])))
