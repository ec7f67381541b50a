"""Scores of transcripts: normalisers, word error rate, bootstrapped intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aromni_jax.errors import UserError

Words = Callable[[str], list[str]]
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Other spellings of the same sound, and the usual second name of zero: a recogniser may write either.
_SAME_SOUND = {
    "oh": "zero",
    "o": "zero",
    "won": "one",
    "to": "two",
    "too": "two",
    "for": "four",
    "fore": "four",
    "ate": "eight",
}
_TOKEN = re.compile(r"\d|[^\W\d_]+(?:'[^\W\d_]+)?")


def plain_words(text: str) -> list[str]:
    """Words of a transcript, lower case, without punctuation, digits spelt one by one."""
    found = _TOKEN.findall(text.lower().replace("\u2019", "'"))
    return [DIGIT_WORDS[int(word)] if word.isdecimal() else word for word in found]


def digit_words(text: str) -> list[str]:
    """Words of a transcript of digits: `plain_words`, and other spellings of a digit's sound are that digit.

    "23", "2, 3", "two-three" and "Too three." all give ["two", "three"]; "oh" gives "zero". Words that
    are no digit are kept, so that they count as errors ("twenty three" is not "two three").
    """
    return [_SAME_SOUND.get(word, word) for word in plain_words(text)]


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein distance between two sequences: substitutions, deletions and insertions cost 1 each."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, found in enumerate(hypothesis, start=1):
            diagonal, row[j] = row[j], min(diagonal + (expected != found), row[j] + 1, row[j - 1] + 1)
    return row[-1]


@dataclass(frozen=True)
class Estimate:
    """A mean over items with its bootstrapped 95 % interval (all fractions of 1) and the item count."""

    value: float
    low: float
    high: float
    items: int

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}] n={self.items}"


def bootstrap(
    totals: Sequence[float],
    weights: Sequence[float] | None = None,
    groups: Sequence[str] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """sum(totals) / sum(weights) over items, with a percentile bootstrap (95 %).

    Args:
      weights: default ones, which gives a plain mean.
      groups: items of one group (say, of one string) are drawn together, since they succeed and fail together; None =
        every item for itself.

    Raises:
      UserError: there is no item.
    """
    totals_n = np.asarray(totals, np.float64)
    weights_n = np.ones_like(totals_n) if weights is None else np.asarray(weights, np.float64)
    if totals_n.size == 0 or weights_n.sum() <= 0:
        raise UserError("nothing to score: give at least one item that is not empty")
    group_n = np.arange(totals_n.size) if groups is None else np.unique(list(groups), return_inverse=True)[1]
    totals_g, weights_g = np.bincount(group_n, totals_n), np.bincount(group_n, weights_n)
    picks = np.random.default_rng(seed).integers(0, totals_g.size, size=(draws, totals_g.size))
    means = totals_g[picks].sum(1) / np.maximum(weights_g[picks].sum(1), 1e-9)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(totals_n.sum() / weights_n.sum()), float(low), float(high), totals_n.size)


def _word_lists(
    references: Sequence[str], hypotheses: Sequence[str], words: Words
) -> list[tuple[list[str], list[str]]]:
    if len(references) != len(hypotheses):
        raise UserError(
            f"{len(references)} references but {len(hypotheses)} hypotheses: give one hypothesis per reference"
        )
    return [(words(ref), words(hyp)) for ref, hyp in zip(references, hypotheses, strict=True)]


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str], words: Words = digit_words) -> Estimate:
    """Corpus word error rate after `words`, with a 95 % interval bootstrapped over distinct references.

    Each item's errors are capped at its reference length (an item's own rate is at most 1), so that one
    looping transcript cannot outweigh all others. Raises UserError if the lengths differ or a reference
    holds no word.
    """
    pairs = _word_lists(references, hypotheses, words)
    for (ref, _), text in zip(pairs, references, strict=True):
        if not ref:
            raise UserError(f"reference {text!r} holds no word: word error rate is undefined")
    errors = [min(edit_distance(ref, hyp), len(ref)) for ref, hyp in pairs]
    return bootstrap(errors, [len(ref) for ref, _ in pairs], references)


def exact_match(references: Sequence[str], hypotheses: Sequence[str], words: Words = digit_words) -> Estimate:
    """Share of items whose words agree entirely; `words` and interval as in `word_error_rate`."""
    pairs = _word_lists(references, hypotheses, words)
    return bootstrap([float(ref == hyp) for ref, hyp in pairs], groups=references)
