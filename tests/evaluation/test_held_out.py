"""What is asked of a model in any world, and what its answers are compared with; every world has its standard."""

import dataclasses

import numpy as np
import pytest

from aromni_jax.cli.evaluate import make_judge
from aromni_jax.errors import UserError
from aromni_jax.evaluation.held_out import bounds_met, evaluate
from aromni_jax.evaluation.scores import plain_words
from aromni_jax.evaluation.standards import STANDARDS, Sizes, Standard, standard_of
from aromni_jax.tasks.answers import Answer, to_media
from aromni_jax.tasks.assistant import Reply
from aromni_jax.tasks.parts import Image, Speech, Text
from aromni_jax.worlds import WORLDS
from tests.small_world import SAID, THINGS, BarCodec, ToneCodec, small_world

STANDARD = Standard(
    words=plain_words,
    speech_judges=("ear",),
    image_judge="nobody:Nobody",
    picture_mode="RGB",
    bounds={"asr": 0.1, "tts": 0.1, "caption": 0.9, "t2i": 0.9},
    held_out="All of it.",
    sizes=Sizes(heard=10, seen=5, spoken=5, drawn=5, crossed=5, chats=5),
    hearing={"asr_deep": {"split": "test", "voice": "deep"}},
)


def sentence(thing, letters):
    """The sentence about a thing that has so many letters."""
    return next(start + thing for start in sum(SAID.values(), ()) if len(start + thing) == letters)


class Ear:
    """Writes down what is said, as recognisers do."""

    name = "ear"

    def __init__(self):
        self.voices = []

    def transcribe(self, wave, sample_rate=16_000):
        voice, thing, letters = ToneCodec().encode(wave[None], [len(wave)])[0]
        self.voices.append(voice)
        return sentence(THINGS[thing], letters).capitalize() + "."


class Eye:
    """Names what is drawn."""

    def read(self, picture):
        assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
        return f"a {THINGS[BarCodec().encode(picture[None])[0][0]]}"


@dataclasses.dataclass
class Knowing:
    """An assistant that knows the small world, and gets wrong what it is told to."""

    wrong: str = ""
    asked: list = dataclasses.field(default_factory=list)
    speech_codec = ToneCodec()
    image_codec = BarCodec()

    def hear(self, waves):
        return [Speech(self.speech_codec.encode(wave[None], [len(wave)])[0]) for wave in waves]

    def look(self, pictures):
        return [Image(codes) for codes in self.image_codec.encode(pictures)]

    def answer(self, task, inputs):
        self.asked += [(task, *parts) for parts in inputs]
        return [self._reply(self._one(task, part)) for (part,) in inputs]

    def _one(self, task, part):
        said, thing = self._understood(part)
        if task == self.wrong:
            said, thing = "nothing at all", (thing + 1) % len(THINGS)
        named = f"a {THINGS[thing]}"
        if task.endswith("to_image"):
            return (Image(np.array([thing, 0])),)
        if task.endswith("to_speech"):
            return (Speech(np.array([1, thing, len(said if task == "text_to_speech" else named)])),)
        return (Text(said if task == "speech_to_text" else named),)

    @staticmethod
    def _understood(part):
        if isinstance(part, Text):
            return part.text, THINGS.index(part.text.split()[-1])
        if isinstance(part, Image):
            return f"a {THINGS[part.codes[0]]}", int(part.codes[0])
        return sentence(THINGS[part.codes[1]], part.codes[2]), int(part.codes[1])

    def session(self):
        return "session"

    def chats(self, histories, parts, options, session):
        assert options.max_text == 16 and session == "session"
        turns = []
        for history, (part,) in zip(histories, parts, strict=True):
            said, thing = self._understood(part)
            named = f"a {THINGS[thing]}"
            answer = [Text(said), Text(named), Speech(np.array([1, thing, len(named)]))]
            answer += [Image(np.array([thing, 1]))] if isinstance(part, Speech) else []
            turns.append((self._reply(tuple(answer), said), [*history, 0]))
        return turns

    def media(self, reply):
        return to_media(reply.answer, self.speech_codec, self.image_codec)

    @staticmethod
    def _reply(parts, transcript=None):
        return Reply([], None, Answer(parts, transcript))


def judged(tmp_path, wrong=""):
    assistant, ear = Knowing(wrong), Ear()
    world = small_world(tmp_path)
    scores, items = evaluate(assistant, world, STANDARD, [ear], Eye(), say=lambda line: None)
    return assistant, ear, scores, items


def test_a_model_that_knows_the_world_gets_everything_right(tmp_path):
    assistant, ear, scores, items = judged(tmp_path)
    assert {"asr", "asr_deep", "caption", "tts", "t2i", "speech_to_image", "image_to_speech", "chat"} == set(scores)
    assert all(scores[name]["wer"] == 0 for name in ("asr", "asr_deep", "tts", "image_to_speech"))
    assert all(scores[name]["exact"] == 1 for name in ("caption", "t2i", "speech_to_image", "chat"))
    assert scores["caption"]["judge_on_originals"] == scores["t2i"]["codec_exact"] == 1
    assert "per_digit" not in scores["t2i"]
    assert all(verdict["passed"] for verdict in bounds_met(scores, STANDARD.bounds).values())
    assert all(item.correct for item in items)

    new, heard = {f"where is the {thing}" for thing in THINGS}, set()
    for task, part in assistant.asked:
        if task == "text_to_speech":
            assert part.text in new
        elif task == "text_to_image":
            assert part.text.removeprefix("a ") in THINGS
        elif isinstance(part, Image):
            assert part.codes[1] == 2, "drawn in the style that training never has"
        else:
            assert sentence(THINGS[part.codes[1]], part.codes[2]) in new
            heard.add(int(part.codes[0]))
    assert heard == {0, 1} and set(ear.voices) == {1}, "what is heard has any voice, what is answered has one"


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ("speech_to_text", {"asr", "asr_deep"}),
        ("image_caption", {"caption"}),
        ("text_to_image", {"t2i"}),
        ("speech_to_image", {"speech_to_image"}),
        ("image_to_speech", {"image_to_speech"}),
    ],
)
def test_wrong_answers_cost_the_score_of_their_task_and_no_other(wrong, names, tmp_path):
    _, _, scores, items = judged(tmp_path, wrong)
    missed = {name for name, score in scores.items() if score.get("exact", 1) < 1 or score.get("wer", 0) > 0}
    assert missed == names
    assert {item.task for item in items if not item.correct} == {wrong}


def test_every_world_that_is_shipped_has_a_standard():
    assert set(STANDARDS) == set(WORLDS)
    assert standard_of("numbers").bounds["t2i"] == 0.8
    for standard in STANDARDS.values():
        assert set(standard.bounds) == {"asr", "tts", "caption", "t2i"} and standard.picture_mode in ("L", "RGB")
    with pytest.raises(
        UserError, match="no judges know the world 'mars': say which one to judge in, numbers or things"
    ):
        standard_of("mars")


def test_a_judge_of_digits_does_not_listen_to_sentences():
    with pytest.raises(UserError, match="--judges pocketsphinx: it knows other words than this world's; use moonshine"):
        make_judge("pocketsphinx", standard_of("things"))
