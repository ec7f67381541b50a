"""Fitting of a vector-quantised autoencoder: first without, then with the codebook.

The codebook starts as the k-means of what the encoder says after a quarter of the steps, and then follows it by
moving averages; the network learns through the straight-through estimator.
"""

import dataclasses
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

Batch = dict[str, Any]
_KMEANS_VECTORS = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast.

    Attributes:
      steps: in all. free_share: share of them before the codebook comes in.
      peak_lr: after `warmup` steps; falls along a cosine to 3 % of it.
      commitment: weight of the pull of the encoder towards its codes.
    """

    steps: int
    peak_lr: float = 2e-3
    warmup: int = 50
    free_share: float = 0.25
    commitment: float = 0.25
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
    """What is fitted.

    Attributes:
      build: makes the network. codes: size of the codebook.
      encode: (network, batch) -> vectors [..., e] and, of the same shape without e, 1 where a vector counts.
      loss: (network, vectors, batch) -> scalar.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    codes: int
    encode: Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
    loss: Callable[[Any, jax.Array, Batch], jax.Array]


def fit(task: Task, batches: Iterator[Batch], config: FitConfig) -> tuple[vq.Params, list[float]]:
    """-> {"net": nested dict, "codebook": float32 [k, e]} and the loss of every step."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.peak_lr, config.warmup, config.steps, 0.03 * config.peak_lr
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=1e-3))

    def total_loss(
        params: vq.Params, codebook_ke: jax.Array | None, batch: Batch
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        net = vq.with_params(task.build, params)
        z, counts = task.encode(net, batch)
        weights = counts[..., None] / counts.sum()
        if codebook_ke is None:
            # A light pull to zero keeps the vectors at a scale that k-means and commitment can work with.
            loss = task.loss(net, z, batch) + 1e-3 * jnp.sum(weights * z**2)
            codes = jnp.full(counts.shape, -1)
        else:
            codes = vq.nearest(codebook_ke, z)
            quantised = codebook_ke[codes]
            pull = jnp.sum(weights * (z - jax.lax.stop_gradient(quantised)) ** 2) / z.shape[-1]
            loss = task.loss(net, vq.straight_through(z, quantised), batch) + config.commitment * pull
            codes = jnp.where(counts > 0, codes, -1)
        return loss, (z.reshape(-1, z.shape[-1]), codes.reshape(-1))

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: vq.Params, moments: Any, book: vq.Params | None, batch: Batch, key: jax.Array) -> tuple:
        codebook_ke = None if book is None else vq.codebook_of(book)
        (loss, (z_ne, codes_n)), gradients = jax.value_and_grad(total_loss, has_aux=True)(params, codebook_ke, batch)
        updates, moments = optimizer.update(gradients, moments, params)
        params = optax.apply_updates(params, updates)
        return params, moments, book and vq.update_codebook(book, z_ne, codes_n, key), loss

    @jax.jit
    def vectors(params: vq.Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return task.encode(vq.with_params(task.build, params), batch)

    params = vq.init(task.build, config.seed)
    moments, losses = optimizer.init(params), []
    book: vq.Params | None = None
    free = round(config.steps * config.free_share)
    keys = iter(jax.random.split(jax.random.key(config.seed), config.steps + 1))
    bar = tqdm(range(config.steps), desc="codec", file=sys.stderr, mininterval=2.0)
    for index in bar:
        if index == free:
            book = _first_codebook(functools.partial(vectors, params), batches, task.codes, next(keys))
        params, moments, book, loss = step(params, moments, book, next(batches), next(keys))
        losses.append(loss)
        if index % 20 == 19:
            bar.set_postfix(loss=f"{float(np.mean(losses[-20:])):.4f}", refresh=False)
    assert book is not None, "free_share below 1 and at least one step"
    return {"net": params, "codebook": vq.codebook_of(book)}, [float(loss) for loss in losses]


def _first_codebook(
    vectors: Callable[[Batch], tuple[jax.Array, jax.Array]], batches: Iterator[Batch], codes: int, key: jax.Array
) -> vq.Params:
    found: list[np.ndarray] = []
    while sum(len(z) for z in found) < _KMEANS_VECTORS:
        z, counts = map(np.asarray, vectors(next(batches)))
        found.append(z[counts > 0])
    x_ne = jnp.asarray(np.concatenate(found)[:_KMEANS_VECTORS])
    return vq.codebook_state(vq.kmeans(key, x_ne, codes), float(len(found[-1])))
