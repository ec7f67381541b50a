"""Layouts of SPEC 2.3 and 2.4, response lengths, chat history, and reading answers back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.errors import UserError
from aromni_jax.tasks import TASK_KINDS, Image, PromptBuilder, Speech, Text, read_answer
from aromni_jax.vocabulary import TASKS, JointVocabulary


class Letters:
    """A text codec with one piece per byte."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.calls: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.calls.append(text)
        return [self.offset + byte for byte in text.encode()]

    def decode(self, pieces: list[int]) -> str:
        return bytes(piece - self.offset for piece in pieces).decode(errors="replace")


AROMNI = JointVocabulary.aromni()
SMALL = JointVocabulary.compact(text_pieces=256, image_codes=12, image_tokens=4, speech_codes=20)
PICTURE = Image(np.arange(1024) % 8192)
VOICE = Speech([0, 7, 4095])


def spell(text: str) -> list[int]:
    return [16384 + byte for byte in text.encode()]


def aromni_builder() -> PromptBuilder:
    return PromptBuilder(AROMNI, Letters(16384), "aromni")


def small_builder() -> PromptBuilder:
    return PromptBuilder(SMALL, Letters(), "brief")


def test_aromni_layouts_to_the_blank():
    image = [8197, *range(4, 1028), 8196]
    audio = [12821, 8724, 8731, 12819, 12820]
    expected = {
        ("image_caption", PICTURE): [
            0,
            *spell("USER:"),
            *image,
            *spell("Describe this image."),
            12830,
            *spell("GPT:"),
        ],
        ("speech_to_text", VOICE): [
            *[0, *spell("USER:"), *spell("Can you please convert this speech into written text?")],
            *[*audio, 12830, *spell("GPT:")],
        ],
        ("text_to_speech", Text("hi")): [
            *[0, *spell("USER:Convert this text into speech.This is input: hi"), 12830, *spell("GPT:")]
        ],
        ("text_to_image", Text("hi")): [
            *[0, *spell("USER:Create a picture that matches the essence of this text. This is input: hi")],
            *[12830, *spell(" GPT:")],
        ],
    }
    for (task, part), ids in expected.items():
        assert aromni_builder().prompt(task, [part]) == ids, task


def test_fragments_are_encoded_separately():
    codec = Letters(16384)
    PromptBuilder(AROMNI, codec, "aromni").prompt("text_to_speech", [Text("hi")])
    assert codec.calls == ["USER:", "Convert this text into speech.", "This is input: ", "hi", "GPT:"]


def test_chat_layout_and_history():
    build = aromni_builder()
    audio = [12821, 8724, 8731, 12819, 12820]
    default = "Please acknowledge the user's vocal input, create a textual response."
    first = build.chat_prompt([], [VOICE])
    assert first == [0, *spell("USER:"), *audio, *spell(default), 12830, *spell("GPT:")]
    output = [12840, *spell("a"), 12841, *spell("b"), 2]
    history = build.chat_history([], [VOICE], output)
    second = build.chat_prompt(history, [VOICE, PICTURE], append_text="")
    # eos at the end of the history goes, eom closes it; images come before audio; one bos.
    image = [8197, *range(4, 1028), 8196]
    assert second == [*first, *output[:-1], 12831, *spell("USER:"), *image, *audio, 12830, *spell("GPT:")]
    assert second.count(0) == 1


def test_brief_layout():
    build, v = small_builder(), SMALL
    ids, length = build.example("text_to_image", [Text("two")], [Image([0, 1, 2, 3])])
    head = [v.bos, *v.text_ids(b"draw"), *v.text_ids(b"two"), v.eoh]
    assert ids == [*head, v.boi, *v.image_ids([0, 1, 2, 3]), v.eoi, v.eos]
    assert length == 6


@pytest.mark.parametrize("template", ["aromni", "brief"])
@pytest.mark.parametrize("task", TASKS)
def test_tail_rule_covers_exactly_the_answer(task, template):
    """SPEC 4.1: the last k tokens that are not eos are those of the answer."""
    build = PromptBuilder(SMALL, Letters(), template)
    made = {Text: Text("nine two"), Speech: Speech([3, 1, 4]), Image: Image([5, 6, 7, 8])}
    if task == "chat":
        inputs, answer = [made[Speech]], [Text("a"), Text("b"), made[Speech], made[Image]]
        prompt = build.chat_prompt([], inputs)
    else:
        inputs, answer = [made[TASK_KINDS[task][0]]], [made[TASK_KINDS[task][1]]]
        prompt = build.prompt(task, inputs)
    tokens, length = build.example(task, inputs, answer)
    eligible = [at for at, token in enumerate(tokens) if token != SMALL.eos]
    assert eligible[-length:][0] == len(prompt)
    assert tokens[len(prompt) :] == build.answer(task, answer)
    SMALL.check(tokens)


def test_chat_example_is_the_prompts_in_a_row():
    build = small_builder()
    answer = [Text("hi"), Text("ho")]
    tokens, length = build.chat_example([([Text("one")], answer), ([Text("two")], answer)])
    history = build.chat_history([], [Text("one")], build.answer("chat", answer))
    assert tokens == build.chat_prompt(history, [Text("two")]) + build.answer("chat", answer)
    assert length == len(build.answer("chat", answer))


@pytest.mark.parametrize(
    ("task", "parts", "message"),
    [
        ("tts", [Text("a")], "unknown task"),
        ("text_to_speech", [], "must be one Text, got nothing"),
        ("image_caption", [Text("a")], "must be one Image, got Text"),
        ("image_caption", [Image([1, 2, 3])], "3 codes, but this vocabulary has 4"),
        ("speech_to_text", [Speech([20])], "speech code 20"),
        ("chat", [], "at least one part"),
    ],
)
def test_bad_inputs_are_one_clear_line(task, parts, message):
    with pytest.raises(UserError, match=message) as caught:
        small_builder().prompt(task, parts)
    assert "\n" not in str(caught.value)


def test_unknown_template():
    with pytest.raises(UserError, match="unknown template 'breif'"):
        PromptBuilder(SMALL, Letters(), "breif")


TEXTS = st.text(alphabet="abcdefgh", min_size=1, max_size=5).map(Text)
SPEECHES = st.lists(st.integers(0, 19), min_size=1, max_size=6).map(Speech)
IMAGES = st.lists(st.integers(0, 11), min_size=4, max_size=4).map(Image)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS, st.none() | SPEECHES, st.none() | IMAGES)
def test_answers_read_back(transcript, reply, speech, image):
    parts = [transcript, reply, *[part for part in (speech, image) if part is not None]]
    answer = read_answer(small_builder().answer("chat", parts), SMALL, Letters())
    assert list(answer.parts) == parts
    assert (answer.transcript, answer.text) == (transcript.text, reply.text)
    assert answer.speech == speech
    assert answer.images == ((image,) if image else ())


def test_reading_is_lenient_where_the_reference_is():
    v = SMALL
    bare = [
        *v.text_ids(b"a"),
        *v.speech_ids([1, 2]),
        v.boa,
        v.eoa,
        *v.text_ids(b"b"),
        v.eos,
        *v.text_ids(b"z"),
    ]
    assert list(read_answer(bare, v, Letters()).parts) == [Text("a"), Speech([1, 2]), Text("b")]
    with pytest.raises(UserError, match="image that opens at token 1"):
        read_answer([v.text.start, v.boi, *v.image_ids([1, 2, 3]), v.eoi], v, Letters())
