"""Training: optimiser, state, step, loop, checkpoints, metrics (DESIGN 7)."""

from aromni_jax.training.loop import Result, train
from aromni_jax.training.metrics import Metrics, read_log
from aromni_jax.training.optimizer import learning_rate, make_optimizer
from aromni_jax.training.program import abstract_state, lower_step
from aromni_jax.training.state import TrainState, make_state
from aromni_jax.training.step import make_eval_step, make_train_step

__all__ = [
    "Metrics",
    "Result",
    "TrainState",
    "abstract_state",
    "learning_rate",
    "lower_step",
    "make_eval_step",
    "make_optimizer",
    "make_state",
    "make_train_step",
    "read_log",
    "train",
]
