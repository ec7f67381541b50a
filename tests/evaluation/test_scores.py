"""Normaliser, word error rate and intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.errors import UserError
from aromni_jax.evaluation.scores import (
    DIGIT_WORDS,
    bootstrap,
    digit_words,
    edit_distance,
    exact_match,
    plain_words,
    word_error_rate,
)

words = st.lists(st.sampled_from(DIGIT_WORDS), min_size=1, max_size=6)
texts = words.map(" ".join)

quick = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("23", "two three"),
        ("2, 3", "two three"),
        ("2-3.", "two three"),
        ("Two three.", "two three"),
        ("two-three", "two three"),
        ("oh five", "zero five"),
        ("O 5", "zero five"),
        ("To for", "two four"),
        ("ate won", "eight one"),
        ("007", "zero zero seven"),
        ("twenty three", "twenty three"),
        ("Nine's", "nine's"),
        ("Nine\u2019s", "nine's"),
        ("", ""),
        (" ... ", ""),
    ],
)
def test_digit_words(text, expected):
    assert digit_words(text) == expected.split()


def test_plain_words_leave_words_as_they_sound():
    assert plain_words("Look at the Red apple, for 2!") == ["look", "at", "the", "red", "apple", "for", "two"]
    assert word_error_rate(["give it to me"], ["Give it two me."], plain_words).value == 1 / 4
    assert word_error_rate(["give it to me"], ["Give it two me."]).value == 0


@quick
@given(words, st.sampled_from([" ", ", ", "-", ". "]), st.booleans())
def test_all_spellings_of_a_digit_string_agree(spoken, between, figures):
    written = [str(DIGIT_WORDS.index(word)) if figures else word.capitalize() for word in spoken]
    assert digit_words(between.join(written)) == spoken
    assert digit_words(" ".join(digit_words(between.join(written)))) == spoken


@quick
@given(st.text())
def test_digit_words_takes_any_text_and_is_stable(text):
    once = digit_words(text)
    assert digit_words(" ".join(once)) == once


@quick
@given(words, words, words)
def test_edit_distance_is_a_metric(a, b, c):
    assert edit_distance(a, a) == 0
    assert edit_distance(a, b) == edit_distance(b, a)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_edit_distance_known_values():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("ab", "ba") == 2


@quick
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8))
def test_word_error_rate_lies_between_none_and_all(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    assert word_error_rate(references, references).value == 0
    estimate = word_error_rate(references, hypotheses)
    assert 0 <= estimate.low <= estimate.value + 1e-12 and estimate.value <= estimate.high + 1e-12 <= 1 + 1e-9


def test_word_error_rate_by_hand():
    # 1 of 2 wrong, 0 of 2, all of 4 missing: 5 / 8.
    assert word_error_rate(["two three", "4 5", "1 2 3 4"], ["two tree", "four five", ""]).value == 5 / 8


def test_a_looping_transcript_counts_once():
    looped = word_error_rate(["two three", "four five"], ["two three", "nine " * 50])
    assert looped.value == 0.5
    # Uncapped it would be 50 / 4.


def test_interval_covers_the_truth_and_narrows():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        estimate = bootstrap((rng.random(100) < 0.3).astype(float), draws=400, seed=trial)
        covered += estimate.low <= 0.3 <= estimate.high
    assert 85 <= covered <= 100
    wide, narrow = (bootstrap(np.arange(n) % 2 * 1.0) for n in (20, 2000))
    assert narrow.high - narrow.low < 0.3 * (wide.high - wide.low)
    assert bootstrap([0.0, 1.0, 1.0]) == bootstrap([0.0, 1.0, 1.0])


def test_exact_match_and_printing():
    estimate = exact_match(["two three", "four"], ["2 3", "five"])
    assert estimate.value == 0.5 and estimate.items == 2
    assert str(estimate).startswith("50.0% [") and str(estimate).endswith("n=2")


def test_what_cannot_be_scored_is_explained():
    with pytest.raises(UserError, match="2 references but 1"):
        word_error_rate(["a", "b"], ["a"])
    with pytest.raises(UserError, match=r"reference '\.' holds no word"):
        word_error_rate(["."], ["a"])
    with pytest.raises(UserError, match="at least one"):
        exact_match([], [])


def test_items_of_one_string_are_drawn_together():
    # Ten strings, each right or wrong ten times over: the interval must be that of ten items, not of a hundred.
    right, strings = (
        [float(n % 2) for n in range(10) for _ in range(10)],
        [str(n) for n in range(10) for _ in range(10)],
    )
    alone, together = bootstrap(right), bootstrap(right, groups=strings)
    assert alone.value == together.value == 0.5 and alone.items == together.items == 100
    assert together.high - together.low > 2 * (alone.high - alone.low)
