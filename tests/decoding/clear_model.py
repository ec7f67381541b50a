"""A random model for tests that compare tokens."""

import types

import jax
import numpy as np

from aromni_jax.decoding import Policy, State
from aromni_jax.model import init_params

SAMPLED = dict.fromkeys(State, Policy(temperature=1.3, top_p=0.95, repetition_penalty=1.2))


def clear_model(config, vocabulary, seed):
    """Its choices are clear, so that rounding never decides one; answers end early at times, but not at once."""
    params = init_params(config, jax.random.PRNGKey(seed))
    kernel = params["head"]["kernel"] * 30.0
    ends = np.array([vocabulary.eos, vocabulary.eom])
    params["head"]["kernel"] = kernel.at[:, ends].multiply(0.6)
    return types.SimpleNamespace(params=params, config=config, vocabulary=vocabulary)
