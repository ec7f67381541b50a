"""Learning-rate schedules and optimisers (optax) from the config (SPEC 5)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from aromni_jax.config import OptimizerConfig

Tree = Any

# Names of the parameter table. The perceptual projection is no part of the decoder.
_NO_DECAY = re.compile(r"norm|bias|perceptual")
_LAYER_MATRIX = re.compile(r"layers/(attention|ffn)/\w+$")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Warm-up from 0 over `warmup_steps`, then the decay to `end_lr_ratio * peak_lr` at `steps`.

    "linear" is the schedule of SPEC 5.1 (Hugging Face's linear): update n uses lr(n), so the first one uses lr(0) = 0.
    """
    peak, end = config.peak_lr, config.peak_lr * config.end_lr_ratio
    rest = max(1, steps - config.warmup_steps)
    if config.decay == "linear":
        decay = optax.schedules.linear_schedule(peak, end, rest)
    elif config.decay == "cosine":
        decay = optax.schedules.cosine_decay_schedule(peak, rest, alpha=config.end_lr_ratio)
    else:
        decay = optax.schedules.constant_schedule(peak)
    if config.warmup_steps == 0:
        return decay
    warmup = optax.schedules.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.schedules.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm, rescale as the named optimiser does, decay weights (decoupled), apply the schedule.

    Of what is trained (`model.trained`), norms, biases and the perceptual projection do not decay.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity()
    return optax.chain(
        clip,
        _rescale(config),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def decay_mask(params: Tree) -> Tree:
    """True where weight decay applies."""
    return _by_name(params, lambda name, _: not _NO_DECAY.search(name))


def _rescale(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.name == "adamw":
        return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.name == "adafactor":
        return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    # optax packs the learning rate into Muon; -1 undoes its sign, and the schedule comes last, as for the others.
    # `consistent_rms` makes its updates as large as Adam's, so that one peak rate serves both kinds of parameter.
    return contrib.muon(
        -1.0,
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: _by_name(params, _matrix_axes),
    )


def _matrix_axes(name: str, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
    """In and out axes of a stacked layer matrix; None (Adam) for embeddings, head, norms, projection and adapters."""
    if not _LAYER_MATRIX.match(name):
        return None
    last = leaf.ndim - 1
    if name == "layers/attention/out":  # [layers, heads, head_dim, embed]
        return contrib.MuonDimensionNumbers(tuple(range(1, last)), last)
    return contrib.MuonDimensionNumbers(1, tuple(range(2, last + 1)))


def _by_name(params: Tree, rule: Callable[[str, Any], Any]) -> Tree:
    def at(path: tuple[Any, ...], leaf: Any) -> Any:
        return rule("/".join(str(entry.key) for entry in path), leaf)

    return jax.tree_util.tree_map_with_path(at, params)
