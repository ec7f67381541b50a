"""Held-out scores of a model in its world: what it hears, says, sees and draws, judged by others than itself.

Every item, recording and drawing is one that neither the model nor its codecs were fitted on. Speech is judged by
recognisers and pictures by a classifier that know nothing of the model; the same judges hear and see the originals
passed through the codecs, so that a codec's own error is not laid to the model's charge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aromni_jax.evaluation.judges import SpeechJudge
from aromni_jax.evaluation.scores import Estimate, bootstrap, exact_match, word_error_rate
from aromni_jax.evaluation.standards import ImageJudge, Standard
from aromni_jax.tasks import Assistant, Part, Reply, Text, task_options
from aromni_jax.worlds import SAMPLE_RATE, World

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Item:
    """One judged answer, for reports: what went in, what came out, what was expected and what the judge made of it.

    Attributes:
      correct: whether the judge read exactly what was expected.
    """

    task: str
    inputs: Sequence[Part]
    reply: Reply
    expected: str
    judged: str
    correct: bool


def evaluate(
    assistant: Assistant,
    world: World,
    standard: Standard,
    judges: Sequence[SpeechJudge],
    image_judge: ImageJudge,
    *,
    seed: int = 0,
    say: Say = print,
) -> tuple[dict[str, Any], list[Item]]:
    """Scores (JSON types, fractions of 1) and the judged items behind them.

    Args:
      standard: what counts in this world.
      judges: recognisers of speech; the first one gives the headline figures.
      image_judge: who reads the pictures of this world.
      say: takes a line per score.
    """
    run = _Run(assistant, world, standard, judges, image_judge, np.random.default_rng(seed), say)
    sizes, scores = standard.sizes, dict[str, Any]()
    scores["asr"] = run.hearing("speech_to_text", sizes.heard, split="test")
    for name, how in standard.hearing.items():
        scores[name] = run.hearing("speech_to_text", sizes.heard // 2, **how)
    scores["caption"] = run.seeing(sizes.seen)
    scores["tts"] = run.speaking("text_to_speech", min(len(world.strings("test")), sizes.spoken), sizes.spoken)
    scores["t2i"] = run.drawing("text_to_image", sizes.drawn)
    scores["speech_to_image"] = run.drawing("speech_to_image", sizes.crossed)
    scores["image_to_speech"] = run.speaking("image_to_speech", sizes.crossed, sizes.crossed)
    scores["chat"] = run.chatting(sizes.chats)
    return scores, run.items


def entry(metric: str, estimate: Estimate, **others: Any) -> dict[str, Any]:
    """JSON form of a score: the value under the metric's name, its 95 % interval, the items, and what goes with it."""
    return {metric: estimate.value, "interval": [estimate.low, estimate.high], "items": estimate.items, **others}


@dataclasses.dataclass
class _Run:
    assistant: Assistant
    world: World
    standard: Standard
    judges: Sequence[SpeechJudge]
    image_judge: ImageJudge
    rng: np.random.Generator
    say: Say
    items: list[Item] = dataclasses.field(default_factory=list)

    # -- one score each ------------------------------------------------------------------------------

    def hearing(self, task: str, count: int, **how: Any) -> dict[str, Any]:
        """Word error rate of transcripts against what was said."""
        strings = self._strings(count)
        spoken = self.assistant.hear([self.world.utterance(string, self.rng, **how) for string in strings])
        replies = self._answers(task, [[part] for part in spoken])
        texts, wanted = [reply.answer.text for reply in replies], self._texts(strings)
        rate = word_error_rate(wanted, texts, self.standard.words)
        self._keep(task, spoken, replies, wanted, texts)
        label = " ".join(str(value) for value in how.values())
        self.say(f"asr ({label}): word error rate {rate}")
        return entry("wer", rate, exact=exact_match(wanted, texts, self.standard.words).value)

    def seeing(self, count: int) -> dict[str, Any]:
        """Share of captions that are exactly right."""
        things = self._things(count)
        pictures = [self.world.picture(thing, self.rng, split="test") for thing in things]
        seen = self.assistant.look(np.stack(pictures))
        replies = self._answers("image_caption", [[part] for part in seen])
        texts, wanted = [reply.answer.text for reply in replies], self._texts(things)
        exact = exact_match(wanted, texts, self.standard.words)
        self._keep("image_caption", seen, replies, wanted, texts)
        baseline = self._share_read(things, [self.image_judge.read(picture) for picture in pictures])
        self.say(f"caption: exact {exact} (the image judge on the original drawings: {baseline.value:.1%})")
        return entry("exact", exact, judge_on_originals=baseline.value)

    def speaking(self, task: str, count: int, codec_count: int) -> dict[str, Any]:
        """Word error rate of each judge on what the model says, beside its rate on originals through the codec.

        Speech is greedy, so a text is spoken in one way only: `count` beyond the held-out items adds nothing to
        text_to_speech. The codec's rate is that of `codec_count` originals, in the voice that answers.
        """
        some = self._strings if task.startswith("text") else self._things
        items, spoken, voice = some(count), some(codec_count), self.world.voice
        originals = [self.world.utterance(item, self.rng, split="test", voice=voice) for item in spoken]
        inputs, wanted = self._inputs(task, items), self._texts(items)
        replies = self._answers(task, inputs)
        codec = self.assistant.speech_codec
        assert codec is not None, "every world has speech"
        said = codec.decode([_codes(reply) for reply in replies])
        passed = codec.decode([part.codes for part in self.assistant.hear(originals)])
        result: dict[str, Any] = {"judges": {}}
        for number, judge in enumerate(self.judges):
            rates, heard = {}, [self._heard(judge, wave) for wave in said]
            rates["model"] = word_error_rate(wanted, heard, self.standard.words)
            for name, waves in (("codec", passed), ("original", originals)):
                heard_originals = [self._heard(judge, wave) for wave in waves]
                rates[name] = word_error_rate(self._texts(spoken), heard_originals, self.standard.words)
            model, codec_wer = rates["model"], rates["codec"].value
            figures = entry("wer", model, codec_wer=codec_wer, original_wer=rates["original"].value)
            figures["difference"] = model.value - codec_wer
            result["judges"][judge.name] = figures
            if number == 0:
                result |= figures
                self._keep(task, [parts[0] for parts in inputs], replies, wanted, heard)
            self.say(
                f"{task} ({judge.name}): word error rate {rates['model']}, codec {rates['codec'].value:.1%}, "
                f"original {rates['original'].value:.1%}"
            )
        return result

    def drawing(self, task: str, count: int) -> dict[str, Any]:
        """Share of pictures, and of their words where they are read one by one, that the image judge reads as asked."""
        items = self._strings(count) if task.startswith("speech") else self._things(count)
        things = [self.world.naming(item) for item in items]
        inputs = self._inputs(task, items)
        replies = self._answers(task, inputs)
        codec = self.assistant.image_codec
        assert codec is not None, "every world has pictures"
        style = self.world.style
        originals = np.stack([self.world.picture(thing, self.rng, split="test", style=style) for thing in things])
        read = self._read(codec.to_pil(np.stack([reply.answer.images[0].codes for reply in replies])))
        through = self._read(codec.to_pil(codec.encode(originals)))
        exact, others = self._share_read(things, read), {}
        if self.standard.per_word:
            others[self.standard.per_word] = self._share_of_words(things, read)
        others["codec_exact"] = self._share_read(things, through).value
        judged = [" ".join(self.standard.words(got)) for got in read]
        self._keep(task, [parts[0] for parts in inputs], replies, self._texts(things), judged)
        self.say(f"{task}: read as asked {exact}, " + ", ".join(f"{k} {v:.1%}" for k, v in others.items()))
        return entry("exact", exact, **others)

    def chatting(self, count: int) -> dict[str, Any]:
        """Two turns: speech in, echo + text + speech + picture out; then a picture in, text + speech out."""
        strings, shown = self._strings(count), self._things(count)[::-1]
        words, standard = self.standard.words, self.standard
        heard, seen = self._spoken(strings), self._drawn(shown)
        # Room for several times a right answer; a model that rambles all the same loses its first turn, not the run.
        brief = dataclasses.replace(
            task_options("chat"), max_text=standard.chat_text, max_speech=standard.chat_speech, history="drop_oldest"
        )
        histories: list[list[int]] = [[] for _ in strings]
        session = self.assistant.session()
        firsts = self.assistant.chats(histories, [[part] for part in heard], options=brief, session=session)
        histories = [history for _, history in firsts]
        seconds = self.assistant.chats(histories, [[part] for part in seen], options=brief, session=session)
        right: dict[str, list[bool]] = {}

        def count_right(name: str, judged: str, expected: str) -> None:
            right.setdefault(name, []).append(words(judged) == words(expected))

        for turn, replies, wanted in (("first", firsts, strings), ("second", seconds, shown)):
            for (reply, _), string in zip(replies, wanted, strict=True):
                media, thing = self.assistant.media(reply), self.world.naming(string)
                named = self.world.text(thing)
                count_right(f"{turn}_transcript", media.transcript or "", self.world.text(string))
                count_right(f"{turn}_text", media.text, named)
                heard_answer = "" if media.wave is None else self._heard(self.judges[0], media.wave)
                count_right(f"{turn}_speech", heard_answer, named)
                if turn == "first":
                    count_right("first_picture", "".join(self._read(media.images[:1])), named)
        for parts, replies, wanted in ((heard, firsts, strings), (seen, seconds, shown)):
            answers = [reply for reply, _ in replies]
            texts = self._texts([self.world.naming(string) for string in wanted])
            self._keep("chat", parts, answers, texts, [reply.answer.text for reply in answers])
        whole = bootstrap([float(all(parts)) for parts in zip(*right.values(), strict=True)], groups=strings)
        shares = {name: float(np.mean(values)) for name, values in right.items()}
        self.say(
            f"chat: both turns right in every part {whole}; " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items())
        )
        return entry("exact", whole, **shares)

    # -- helpers -------------------------------------------------------------------------------------

    def _strings(self, count: int) -> list[str]:
        return _some(self.world.strings("test"), count)

    def _things(self, count: int) -> list[str]:
        """What the held-out items name."""
        return _some(list(dict.fromkeys(map(self.world.naming, self.world.strings("test")))), count)

    def _texts(self, strings: Sequence[str]) -> list[str]:
        return [self.world.text(string) for string in strings]

    def _share_read(self, things: Sequence[str], read: Sequence[str]) -> Estimate:
        words = self.standard.words
        same = [words(text) == words(got) for text, got in zip(self._texts(things), read, strict=True)]
        return bootstrap([float(right) for right in same], groups=things)

    def _share_of_words(self, things: Sequence[str], read: Sequence[str]) -> float:
        """Of the words that a judge reads in the same place."""
        words = self.standard.words
        pairs = [(words(text), words(got)) for text, got in zip(self._texts(things), read, strict=True)]
        return float(np.mean([a == b for wanted, got in pairs for a, b in zip(wanted, got, strict=True)]))

    def _inputs(self, task: str, strings: Sequence[str]) -> list[list[Part]]:
        """What the task takes, made from held-out media."""
        if task.startswith("text"):
            return [[Text(text)] for text in self._texts(strings)]
        return [[part] for part in (self._spoken(strings) if task.startswith("speech") else self._drawn(strings))]

    def _spoken(self, strings: Sequence[str]) -> Sequence[Part]:
        return self.assistant.hear([self.world.utterance(string, self.rng, split="test") for string in strings])

    def _drawn(self, strings: Sequence[str]) -> Sequence[Part]:
        return self.assistant.look(np.stack([self.world.picture(string, self.rng, split="test") for string in strings]))

    def _answers(self, task: str, inputs: Sequence[Sequence[Part]]) -> list[Reply]:
        return self.assistant.answer(task, inputs)

    def _heard(self, judge: SpeechJudge, wave: np.ndarray) -> str:
        # Judges refuse what is too short to hold a word; to them it is silence.
        return judge.transcribe(wave, SAMPLE_RATE) if len(wave) > SAMPLE_RATE // 8 else ""

    def _read(self, pictures: Sequence[Any]) -> list[str]:
        return [self.image_judge.read(np.asarray(picture.convert(self.standard.picture_mode))) for picture in pictures]

    def _keep(
        self, task: str, inputs: Sequence[Part], replies: Sequence[Reply], wanted: Sequence[str], judged: Sequence[str]
    ) -> None:
        words = self.standard.words
        for part, reply, text, heard in zip(inputs, replies, wanted, judged, strict=True):
            self.items.append(Item(task, [part], reply, text, heard, words(heard) == words(text)))


def _some(items: Sequence[str], count: int) -> list[str]:
    """So many items: in turns where there are fewer, evenly spread where there are more."""
    step = max(1.0, len(items) / count)
    return [items[int(number * step) % len(items)] for number in range(count)]


def _codes(reply: Reply) -> np.ndarray:
    return reply.answer.speech.codes if reply.answer.speech is not None else np.zeros(0, np.int32)


def bounds_met(scores: Mapping[str, Any], bounds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The headline figures beside their bounds: {"asr": {"value", "bound", "passed"}, ...}."""
    figures = {
        "asr": scores["asr"]["wer"],
        "tts": scores["tts"]["difference"],
        "caption": scores["caption"]["exact"],
        "t2i": scores["t2i"]["exact"],
    }
    smaller_is_better = {"asr", "tts"}
    return {
        name: {
            "value": value,
            "bound": bounds[name],
            "passed": value <= bounds[name] if name in smaller_is_better else value >= bounds[name],
        }
        for name, value in figures.items()
    }
