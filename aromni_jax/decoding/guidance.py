"""Classifier-free guidance of images, in the form of InstructPix2Pix (SPEC 6.7), inside the batch's own cache.

    L = u + s_image * (i - u) + s_text * (f - i)

f sees the whole prompt, i only bos and the pictures of it, u only bos, or a negative prompt: what the picture is to be
unlike. A prompt without pictures shows i what u sees. i and u are extra rows ("side rows") of the
same batch that read what their main row emits, as far as it belongs to them: i reads pictures, u reads the picture
being drawn. A side row is made only where its coefficient is not zero and it differs from a row already there: a
prompt without pictures has i = u until the first picture is drawn, so one picture costs one side row; scales of 1 and 1
cost none.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aromni_jax.decoding.grammar import State, within
from aromni_jax.errors import UserError
from aromni_jax.model import KVCache
from aromni_jax.vocabulary import JointVocabulary, Modality


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How one request is guided.

    Attributes:
      text, image: scales. The reference draws with text 3.07 and image 1.15 or 1.32 (SPEC 6.1).
      negative: token ids, bos first, in place of the bos that u sees.
    """

    text: float = 3.07
    image: float = 1.15
    negative: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.text) and np.isfinite(self.image)):
            raise UserError(f"guidance: scales must be finite, got text {self.text} and image {self.image}")

    def check(self, vocabulary: JointVocabulary, context: int, where: str) -> None:
        """`UserError`, prefixed by `where`, if the negative prompt cannot be read in a model of `context` positions."""
        if self.negative is None:
            return
        where = f"{where}: negative prompt"
        ids = as_ids(self.negative, f"{where}:")
        vocabulary.check(ids, where)
        kinds = vocabulary.modality(ids)
        unknown = np.flatnonzero((kinds == Modality.MARKER) & ~np.isin(ids, list(vocabulary.markers.values())))
        if unknown.size:
            at = int(unknown[0])
            raise UserError(f"{where}: id {ids[at]} at position {at} is no text, image or speech, and no marker")
        picture = vocabulary.image_tokens + 1  # with its boi
        if ids.size + picture > context:
            raise UserError(
                f"{where}: {ids.size} tokens and the {picture} of a picture are more than the context of {context}; "
                "shorten it"
            )


def as_ids(tokens: Sequence[int], what: str) -> np.ndarray:
    """The token ids, int [n]; `UserError`, which begins with `what`, if they are none, or anything else."""
    try:
        ids = np.asarray(tokens)
    except ValueError:  # lists of several lengths
        ids = np.zeros(0)
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"{what} must be a list of token ids, at least one")
    return ids


class Reads(enum.IntEnum):
    """What a row takes in of the tokens its main row emits."""

    ALL = 0
    PICTURES = 1
    THIS_PICTURE = 2
    NOTHING = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Branches:
    """Which rows of the cache belong to which request. B main rows come first, then the side rows; R rows in all.

    Attributes:
      source_r: int32 [R], the main row whose tokens the row reads.
      reads_r: int32 [R], how much of them.
      prompt_r: int32 [R], tokens of the row's own prompt (without padding).
      image_row_b, plain_row_b: int32 [B], the row that gives i and the one that gives u; the main row itself where
        there is none.
      weights_b3: float32 [B, 3], coefficients of f, i, u; (1, 0, 0) without guidance.
    """

    source_r: jax.Array
    reads_r: jax.Array
    prompt_r: jax.Array
    image_row_b: jax.Array
    plain_row_b: jax.Array
    weights_b3: jax.Array


def plan(
    vocabulary: JointVocabulary,
    prompts: Sequence[Sequence[int]],
    guidance: Sequence[Guidance | None],
    may_draw: Sequence[int],
) -> tuple[list[tuple[int, Reads, list[int]]], np.ndarray, np.ndarray]:
    """Side rows of a batch.

    Args:
      may_draw: pictures that each request may draw at most.

    Returns:
      side rows as (main row, what it reads, prompt), in order;
      int32 [B, 2]: number of the side row for i and for u, -1 for none;
      float32 [B, 3]: coefficients of f, i, u.
    """
    side: list[tuple[int, Reads, list[int]]] = []
    rows = np.full((len(prompts), 2), -1, np.int32)
    weights = np.tile(np.asarray([1, 0, 0], np.float32), (len(prompts), 1))
    v = vocabulary
    for b, (prompt, scales) in enumerate(zip(prompts, guidance, strict=True)):
        if scales is None or not may_draw[b]:
            continue
        pictures = [token for token in prompt if token in v.image or token in (v.bos, v.boi, v.eoi)]
        plain = [v.bos] if scales.negative is None else list(scales.negative)
        if pictures == [v.bos]:
            pictures = plain
        full, image, none = scales.text, scales.image - scales.text, 1 - scales.image
        if pictures == plain and may_draw[b] == 1:
            image, none = 0.0, image + none
        weights[b] = full, image, none
        if image:
            rows[b, 0] = len(side)
            side.append((b, Reads.PICTURES, pictures))
        if none:
            rows[b, 1] = len(side)
            side.append((b, Reads.THIS_PICTURE, plain))
    return side, rows, weights


def follow(
    vocabulary: JointVocabulary, reads: Reads, own: int, held: Sequence[int], tokens: Sequence[int]
) -> list[int]:
    """What a row whose prompt has `own` tokens holds after its main row has emitted `tokens`: `reading` and
    `forget_last_picture`, told on the host."""
    v = vocabulary
    if reads == Reads.ALL:
        return [*held, *tokens]
    if reads == Reads.NOTHING:
        return list(held)
    pictures = [token for token in tokens if token in v.image or token in (v.boi, v.eoi)]
    if reads == Reads.PICTURES:
        return [*held, *pictures]
    now = list(held)
    for token in pictures:
        if token == v.boi:
            del now[own:]
        if token != v.eoi:
            now.append(token)
    return now


def mix(logits_rv: jax.Array, branches: Branches, state_b: jax.Array) -> jax.Array:
    """Logits of the main rows, float32 [B, V], guided where a row draws."""
    full_bv = logits_rv[: state_b.shape[0]]
    f, i, u = (branches.weights_b3[:, k : k + 1] for k in range(3))
    guided_bv = f * full_bv + i * logits_rv[branches.image_row_b] + u * logits_rv[branches.plain_row_b]
    use = (state_b == State.IMAGE) & jnp.any(branches.weights_b3[:, 1:] != 0, axis=-1)
    return jnp.where(use[:, None], guided_bv, full_bv)


def reading(
    vocabulary: JointVocabulary, branches: Branches, tokens_b: jax.Array, live_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Tokens for all rows, and which rows take them in: int32 [R], bool [R]."""
    v = vocabulary
    tokens_r = tokens_b[branches.source_r]
    code = within(v.image, tokens_r)
    picture = code | (tokens_r == v.boi) | (tokens_r == v.eoi)
    wanted = jnp.stack([jnp.ones_like(code), picture, code | (tokens_r == v.boi), jnp.zeros_like(code)])
    return tokens_r, wanted[branches.reads_r, jnp.arange(tokens_r.shape[0])] & live_b[branches.source_r]


def forget_last_picture(
    vocabulary: JointVocabulary, branches: Branches, cache: KVCache, tokens_r: jax.Array, prompt_slots_r: jax.Array
) -> KVCache:
    """At boi, the rows that know only the picture being drawn go back to their prompt: [bos, boi] (SPEC 6.7).

    `prompt_slots_r`: int32 [R], the first slot of each row that is not its prompt's.
    """
    again_r = (branches.reads_r == Reads.THIS_PICTURE) & (tokens_r == vocabulary.boi)
    generated_rt = jnp.arange(cache.length)[None] >= prompt_slots_r[:, None]
    return dataclasses.replace(
        cache,
        segments_bt=jnp.where(again_r[:, None] & generated_rt, 0, cache.segments_bt),
        positions_b=jnp.where(again_r, branches.prompt_r, cache.positions_b),
    )
