"""Items of any source as training examples: media through the codecs in batches of about one length, tasks from pairs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soxr

from aromni_jax.codecs import read_audio, read_image
from aromni_jax.data.prefetch import Prefetch
from aromni_jax.data.record import Record
from aromni_jax.data.weights import SEGMENT, Role, token_roles
from aromni_jax.errors import UserError
from aromni_jax.prepare.items import SPLITS, Blob, Item, Reject, Stream, Unusable, Wave
from aromni_jax.prepare.media import Codecs, encode_speech
from aromni_jax.prepare.world import UNCONDITIONAL
from aromni_jax.tasks.parts import Image, Part, Speech, Text
from aromni_jax.tasks.prompts import PromptBuilder
from aromni_jax.tasks.templates import TASK_KINDS
from aromni_jax.vocabulary import JointVocabulary

# What is made of an item that has both kinds; of a text alone, plain text.
PAIRED_TASKS = (
    "image_caption",
    "text_to_image",
    "speech_to_text",
    "text_to_speech",
    "speech_to_image",
    "image_to_speech",
)
TASKS_MADE = (*PAIRED_TASKS, "text_to_text")
_THREADS = 4
_READ_AT_ONCE = 64  # items whose media the threads read
_CHUNK_BYTES = 2**27  # of prepared media that go to the codecs together; up to three such chunks are in memory
_CHUNK_ITEMS = 1024
_SAMPLES_AT_ONCE = 2**22  # of a batch of waves, padding included; a longer wave is a batch of its own


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How examples are made.

    Attributes:
      template: name of the prompt layouts.
      tasks: those of `TASKS_MADE` to make, where the item has what they take.
      sequence_length: tokens of a row, and of the longest example.
      held_out_every: one in so many items goes to the test split, where the source has none.
      seed: of which ones.
    """

    template: str
    tasks: tuple[str, ...]
    sequence_length: int
    held_out_every: int
    seed: int


@dataclasses.dataclass
class _Loaded:
    """An item with its media as the codecs take them: float32 [H, W, C] and [n]; later, with their codes."""

    item: Item
    image: np.ndarray | None = None
    speech: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        return sum(media.nbytes for media in (self.image, self.speech) if media is not None)


_Entry = _Loaded | Stream | Reject


class Tokeniser:
    """Makes examples; one per worker, for it holds the codecs.

    Attributes:
      pictures, seconds: of sound, encoded so far.
    """

    def __init__(self, recipe: Recipe, vocabulary: JointVocabulary, codecs: Codecs | None) -> None:
        self._recipe = recipe
        self._vocabulary = vocabulary
        self._media = codecs
        self._builder = PromptBuilder(vocabulary, codecs.text, recipe.template) if codecs else None
        self.pictures = 0
        self.seconds = 0.0

    def examples(self, items: Iterable[Item | Stream | Reject]) -> Iterator[tuple[str, Record] | Reject]:
        """(split, example), or what is left out, in order of the items.

        The same items in the same order give the same examples: the codecs see the same batches.
        """
        for chunk in Prefetch(self._chunks(items), 1):
            self._encode([entry for entry in chunk if isinstance(entry, _Loaded)])
            for entry in chunk:
                if isinstance(entry, Reject):
                    yield entry
                elif isinstance(entry, Stream):
                    yield self._checked(entry)
                else:
                    yield from self._made(entry)

    # -- media to codes -------------------------------------------------------------------------------

    def _chunks(self, items: Iterable[Item | Stream | Reject]) -> Iterator[list[_Entry]]:
        """Items with their media read, so many at a time that memory holds them."""
        chunk: list[_Entry] = []
        size = 0
        waiting = iter(items)
        with ThreadPoolExecutor(_THREADS) as pool:
            while taken := list(itertools.islice(waiting, _READ_AT_ONCE)):
                for entry in pool.map(self._load, taken):
                    chunk.append(entry)
                    size += entry.bytes if isinstance(entry, _Loaded) else 0
                    if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK_ITEMS:
                        yield chunk
                        chunk, size = [], 0
        if chunk:
            yield chunk

    def _load(self, item: Item | Stream | Reject) -> _Entry:
        if not isinstance(item, Item):
            return item
        assert self._media is not None
        try:
            texts = tuple(text.strip() for text in item.texts if text.strip())
            item = dataclasses.replace(item, texts=texts)
            if not texts and not (item.image and item.speech):
                raise Unusable("no text", "a caption or transcript is missing or empty")
            loaded = _Loaded(item)
            if item.image is not None:
                loaded.image = _named("bad picture", lambda: self._picture(item.image))
            if item.speech is not None:
                loaded.speech = _named("bad sound", lambda: self._sound(item.speech))
            return loaded
        except UserError as error:
            return Reject.of(item.file, item.record, error)

    def _picture(self, image: Path | Blob | None) -> np.ndarray:
        assert self._media is not None and image is not None
        opened = read_image(image.name, data=image.data) if isinstance(image, Blob) else read_image(image)
        return self._media.image.prepare(opened)[0]

    def _sound(self, speech: Path | Blob | Wave | None) -> np.ndarray:
        assert self._media is not None and speech is not None
        codec = self._media.speech
        if isinstance(speech, Wave):
            wave_n = soxr.resample(speech.wave, speech.rate, codec.sample_rate, quality="HQ")
        elif isinstance(speech, Blob):
            wave_n = read_audio(speech.name, codec.sample_rate, data=speech.data)
        else:
            wave_n = read_audio(speech, codec.sample_rate)
        if not len(wave_n):
            raise UserError("no samples")
        if len(wave_n) > self._recipe.sequence_length * codec.hop:
            raise Unusable("too long", f"{len(wave_n) / codec.sample_rate:.1f} s of sound are more than a row takes")
        return np.ascontiguousarray(wave_n, np.float32)

    def _encode(self, entries: Sequence[_Loaded]) -> None:
        """Replaces the media of the entries by their codes."""
        if self._media is None:
            return
        seen = [entry for entry in entries if entry.image is not None]
        if seen:
            codes_bn = self._media.image.encode(np.stack([entry.image for entry in seen]))
            for entry, codes_n in zip(seen, codes_bn, strict=True):
                entry.image = codes_n
        self.pictures += len(seen)
        heard = [entry for entry in entries if entry.speech is not None]
        for batch in _alike(heard):
            waves = [entry.speech for entry in batch if entry.speech is not None]
            self.seconds += sum(map(len, waves)) / self._media.speech.sample_rate
            for entry, codes_t in zip(batch, encode_speech(self._media.speech, waves), strict=True):
                entry.speech = codes_t

    # -- codes to examples ----------------------------------------------------------------------------

    def _made(self, entry: _Loaded) -> Iterator[tuple[str, Record] | Reject]:
        item = entry.item
        split = self._split(item.split, item.record)
        media: dict[type, Part] = {}
        if entry.image is not None:
            media[Image] = Image(entry.image)
        if entry.speech is not None:
            media[Speech] = Speech(entry.speech)
        if not media:
            if "text_to_text" in self._recipe.tasks:
                for number, text in enumerate(item.texts):
                    yield from ((split, record) for record in self._plain(item, number, text))
            return
        for task in self._recipe.tasks:
            given, wanted = TASK_KINDS[task]
            if task not in PAIRED_TASKS or not {given, wanted} <= {*media, Text}:
                continue
            about_text = Text in (given, wanted)
            for number, text in enumerate(item.texts if about_text else [""]):
                parts = {**media, Text: Text(text)}
                try:
                    yield split, self._example(item, task, number, parts[given], parts[wanted])
                except UserError as error:
                    yield Reject.of(item.file, item.record, error)

    def _example(self, item: Item, task: str, number: int, given: Part, wanted: Part) -> Record:
        assert self._builder is not None
        name = _name(item, task, number)
        if task == "text_to_image" and _share(name) < UNCONDITIONAL:
            answer = self._builder.answer(task, [wanted])
            tokens, length = [self._vocabulary.bos, *answer], len(answer) - 1
        else:
            tokens, length = self._builder.example(task, [given], [wanted])
        return self._fitting(tokens, task, length, name)

    def _plain(self, item: Item, number: int, text: str) -> Iterator[Record]:
        """A text of any length as records that fit a row: bos before the first, eos behind the last."""
        assert self._media is not None
        v, longest = self._vocabulary, self._recipe.sequence_length
        ids = [v.bos, *v.text_ids(self._media.text.encode(text)).tolist(), v.eos]
        for piece, start in enumerate(range(0, len(ids), longest)):
            name = _name(item, "text_to_text", number) + (f"+{piece}" if piece else "")
            yield self._fitting(ids[start : start + longest], "text_to_text", 0, name)

    def _checked(self, stream: Stream) -> tuple[str, Record] | Reject:
        """A stream of ids as an example."""
        try:
            length = stream.response_length
            if length is None:
                length = self._answer_length(stream)
            record = self._fitting(stream.tokens, stream.task, length, stream.id)
            if stream.labels is not None:
                self._check_labels(stream, record)
            return self._split(stream.split, stream.record), record
        except UserError as error:
            return Reject.of(stream.file, stream.record, error)

    def _fitting(self, tokens: Sequence[int] | np.ndarray, task: str, length: int, name: str) -> Record:
        if len(tokens) > self._recipe.sequence_length:
            detail = f"{len(tokens)} tokens of {task}, a row takes {self._recipe.sequence_length}"
            raise Unusable("too long", detail)
        return Record.checked(tokens, task, length, name, self._vocabulary, "tokens")

    def _answer_length(self, stream: Stream) -> int:
        """Tokens of the last run of labels, eos not counted."""
        assert stream.labels is not None
        ends = np.flatnonzero(stream.labels)
        if not len(ends):
            raise Unusable("no label", "no token of it carries loss")
        before = np.flatnonzero(~stream.labels[: ends[-1]])
        first = int(before[-1]) + 1 if len(before) else 0
        return int((np.asarray(stream.tokens)[first : ends[-1] + 1] != self._vocabulary.eos).sum())

    def _check_labels(self, stream: Stream, record: Record) -> None:
        """`Unusable` unless training would put loss on the tokens that the labels say."""
        roles = token_roles(record.tokens, record.response_length, self._vocabulary) & ~np.uint8(SEGMENT)
        answers = np.isin(roles, (Role.RESPONSE, Role.PLAIN))
        wrong = np.flatnonzero(answers != stream.labels)
        if len(wrong[wrong > 0]):  # the first token is never predicted
            raise Unusable("labels are not the answers", f"they differ at position {wrong[wrong > 0][0]}")

    def _split(self, told: str, record: str) -> str:
        if told:
            return told
        every = self._recipe.held_out_every
        digest = hashlib.sha256(f"{self._recipe.seed} {record}".encode(errors="surrogateescape")).digest()
        return SPLITS[int.from_bytes(digest[:8], "big") % every == 0] if every else SPLITS[0]


def _alike(entries: Sequence[_Loaded]) -> Iterator[list[_Loaded]]:
    """Batches of sound of about one length, the longest first."""
    ordered = sorted(entries, key=lambda entry: -len(entry.speech if entry.speech is not None else ()))
    while ordered:
        longest = len(ordered[0].speech if ordered[0].speech is not None else ())
        size = max(1, _SAMPLES_AT_ONCE // longest)
        yield ordered[:size]
        ordered = ordered[size:]


def _named(reason: str, read):
    """What `read` returns; its error under that reason."""
    try:
        return read()
    except Unusable:
        raise
    except UserError as error:
        raise Unusable(reason, " ".join(str(error).split())) from None


def _name(item: Item, task: str, number: int) -> str:
    return f"{task}/{item.record}" + (f"#{number}" if number else "")


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
