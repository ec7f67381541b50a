"""The perceptual loss on image tokens (paper eq. 3, SPEC 4.3), dense and masked, so that packed rows need no gather."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp


class Perceptual(NamedTuple):
    """float32 scalars: the loss, and the number of image tokens in it."""

    loss: jax.Array
    tokens: jax.Array


def perceptual(
    hidden_bsd: jax.Array,
    projection: Mapping[str, jax.Array],
    codebook_kc: jax.Array,
    tokens_bs: jax.Array,
    mask_bs: jax.Array,
    *,
    image_start: int,
    align: Literal["predict", "same_position"] = "predict",
    reduce: Literal["sum", "mean"] = "mean",
    denominator: jax.Array | None = None,
) -> Perceptual:
    """Squared distance between a projected hidden state and the codebook vector of an image token.

    Args:
      hidden_bsd: hidden states after the final norm.
      projection: {"kernel": [d, c], "bias": [c]}; wrap it in `jax.lax.stop_gradient` to keep it frozen.
      codebook_kc: the image codec's codebook; gets no gradient.
      mask_bs: bool [b, s], the image tokens that count (`image_span_mask`).
      image_start: id of image code 0.
      align: "predict": the state that predicts the token, one position earlier (paper); "same_position": the state that
        has read it (released code).
      reduce: over the codebook's width: "sum" (paper) or "mean" (released code); over tokens it is always the mean.
      denominator: number of counted image tokens of the global batch, when these rows are only a part of it.
    """
    codes_bs = jnp.clip(tokens_bs - image_start, 0, codebook_kc.shape[0] - 1)
    if align == "predict":
        codes_bs, mask_bs = _ahead(codes_bs), _ahead(mask_bs)
    kernel_dc = projection["kernel"].astype(hidden_bsd.dtype)
    seen_bsc = jnp.einsum("bsd,dc->bsc", hidden_bsd, kernel_dc, preferred_element_type=jnp.float32)
    wanted_bsc = jax.lax.stop_gradient(codebook_kc).astype(jnp.float32)[codes_bs]
    error_bsc = seen_bsc + projection["bias"].astype(jnp.float32)[None, None] - wanted_bsc
    squares_bs = jnp.sum(jnp.square(error_bsc), axis=-1)
    if reduce == "mean":
        squares_bs /= codebook_kc.shape[1]
    tokens = jnp.sum(mask_bs).astype(jnp.float32)
    if denominator is None:
        denominator = tokens
    return Perceptual(jnp.sum(jnp.where(mask_bs, squares_bs, 0.0)) / jnp.maximum(denominator, 1.0), tokens)


def image_span_mask(tokens_bs: jax.Array, counted_bs: jax.Array, *, boi: int, image_tokens: int) -> jax.Array:
    """bool [b, s]: the `image_tokens` positions after every BOI where `counted_bs` holds, if the row has them all.

    SPEC 4.3 counts a picture by its BOI: `counted_bs` says where the BOI itself is a target of a task that takes part.
    """
    length = tokens_bs.shape[1]
    place_s = jnp.arange(length)
    complete_s = place_s + image_tokens < length
    anchors_bs = (tokens_bs == boi) & counted_bs & complete_s[None]
    # A position lies in a span when an anchor stands 1 to image_tokens places before it.
    before_bs = jnp.cumsum(anchors_bs, axis=1) - anchors_bs
    gone_bs = jnp.where(place_s[None] >= image_tokens, jnp.roll(before_bs, image_tokens, axis=1), 0)
    return before_bs > gone_bs


def _ahead(values_bs: jax.Array) -> jax.Array:
    """Values of the next position; the last one is zero."""
    return jnp.pad(values_bs[:, 1:], ((0, 0), (0, 1)))
