"""What of a history goes into a turn's prompt."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.errors import UserError
from aromni_jax.tasks import Dropped, Options, PromptBuilder, Text
from aromni_jax.tasks.dialog import plan_turn
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.compact(text_pieces=256, image_codes=6, image_tokens=4, speech_codes=9)


class Letters:
    """One piece per byte."""

    def encode(self, text):
        return list(text.encode())


PROMPTS = PromptBuilder(V, Letters(), "brief")
OPTIONS = Options(max_new_tokens=20)


def past(*lengths):
    """A history of finished turns, of so many tokens each; the last answer ends with eos, as answers may."""
    turns = [[*[V.text.start + n] * (length - 4), V.eoh, V.ins, V.res, V.eom] for n, length in enumerate(lengths)]
    if turns:
        turns[-1][-1] = V.eos
    return turns


def flat(turns):
    return list(itertools.chain(*turns))


def plan(turns, options, context=100, number=0):
    return plan_turn(PROMPTS, flat(turns), [Text("hi")], "", options, context=context, number=number)


@given(st.lists(st.integers(5, 60), max_size=6), st.integers(24, 140))
def test_as_many_of_the_last_turns_as_fit(lengths, context):
    turns = past(*lengths)
    turn = plan(turns, dataclasses.replace(OPTIONS, history="drop_oldest"), context)
    left = flat(turns[turn.dropped.turns :])
    assert turn.history == left and turn.dropped.tokens == sum(lengths[: turn.dropped.turns])
    assert turn.request.prompt_tokens == PROMPTS.chat_prompt(left, [Text("hi")], "")
    assert len(turn.request.prompt_tokens) == 1 + len(left) + 3
    assert not left or 4 + len(left) + 20 <= context
    if turn.dropped.turns:
        assert 4 + sum(lengths[turn.dropped.turns - 1 :]) + 20 > context, "no turn is dropped without need"
    if turn.dropped.turns:
        with pytest.raises(UserError, match="more than the context"):
            plan(turns, OPTIONS, context)
    else:
        assert plan(turns, OPTIONS, context) == turn


def test_a_refusal_says_the_sizes():
    words = (
        r"dialog 3: 77 tokens of history, 4 of this turn and room for an answer of 20 are more than the context of 100"
    )
    with pytest.raises(UserError, match=words):
        plan(past(30, 47), OPTIONS, number=3)


def test_an_answer_of_unsaid_length_gets_half_of_the_context_at_most():
    fits, too_long = past(30, 16), past(30, 17)
    assert plan(fits, Options()).dropped == Dropped()
    with pytest.raises(UserError, match="room for an answer of 50 "):
        plan(too_long, Options())
    short = Options(max_text=2, max_speech=2)  # 2 * (6 + 6 + 8) tokens
    with pytest.raises(UserError, match="room for an answer of 40 "):
        plan(past(57), short)
    assert plan(past(56), short).request.max_new_tokens == 40


def test_a_turn_without_history_is_left_to_the_engine():
    assert plan([], OPTIONS, context=4).dropped == Dropped()


def test_an_unknown_policy():
    with pytest.raises(UserError, match="'forget': use 'refuse' or 'drop_oldest'"):
        plan([], dataclasses.replace(OPTIONS, history="forget"))
