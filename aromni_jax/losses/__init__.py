"""Training losses: pure functions of hidden states, parameters and the batch (SPEC 4)."""

from aromni_jax.losses.cross_entropy import CrossEntropy, cross_entropy
from aromni_jax.losses.next_token import NextToken, next_token_denominator, weighted_next_token
from aromni_jax.losses.perceptual import Perceptual, image_span_mask, perceptual

__all__ = [
    "CrossEntropy",
    "NextToken",
    "Perceptual",
    "cross_entropy",
    "image_span_mask",
    "next_token_denominator",
    "perceptual",
    "weighted_next_token",
]
