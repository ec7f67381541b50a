"""Items as training examples: media through the codecs in batches of about one length, tasks from pairs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soxr

from aromni_jax.codecs import ImageCodec, SpeechCodec, read_audio, read_image
from aromni_jax.data.prefetch import Prefetch
from aromni_jax.errors import UserError
from aromni_jax.prepare.examples import ExampleBuilder, Made
from aromni_jax.prepare.items import Blob, Codes, Dialog, Given, Item, Reject, Stream, Unusable, Wave
from aromni_jax.prepare.media import encode_speech
from aromni_jax.tasks.parts import Image, Part, Speech

_THREADS = 4
_READ_AT_ONCE = 64  # items whose media the threads read
_CHUNK_BYTES = 2**27  # of prepared media that go to the codecs together; up to three such chunks are in memory
_CHUNK_ITEMS = 1024
_SAMPLES_AT_ONCE = 2**22  # of a batch of waves, padding included; a longer wave is a batch of its own


@dataclasses.dataclass
class _Loaded:
    """An item with its media as the codecs take them: float32 [H, W, C] and [n]; and with their codes.

    Of each kind the codes are there from the beginning, or come when the medium has been encoded.
    """

    item: Item
    image: np.ndarray | None = None
    speech: np.ndarray | None = None
    codes: dict[type, Part] = dataclasses.field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(media.nbytes for media in (self.image, self.speech) if media is not None)


_Entry = _Loaded | Dialog | Stream | Reject


class Tokeniser:
    """Makes examples; one per worker, for it holds the codecs.

    Attributes:
      pictures, seconds: of sound, encoded so far.
    """

    def __init__(
        self, builder: ExampleBuilder, image: ImageCodec | None = None, speech: SpeechCodec | None = None
    ) -> None:
        """Codecs that the source does not need (`Source.needs`) may be left out."""
        self._builder = builder
        self._image = image
        self._speech = speech
        self.pictures = 0
        self.seconds = 0.0

    def examples(self, items: Iterable[Given], *, hold_first: bool) -> Iterator[Made]:
        """(split, example), or what is left out, in order of the items; `hold_first` as of an `ExampleBuilder`.

        The same items in the same order give the same examples: the codecs see the same batches.
        """
        self._builder.hold_first = hold_first
        for chunk in Prefetch(self._chunks(items), 1):
            self._encode([entry for entry in chunk if isinstance(entry, _Loaded)])
            for entry in chunk:
                if isinstance(entry, Reject):
                    yield entry
                elif isinstance(entry, Stream):
                    yield self._builder.of_stream(entry)
                elif isinstance(entry, Dialog):
                    yield self._builder.of_dialog(entry)
                else:
                    yield from self._builder.of_item(entry.item, entry.codes)

    def _chunks(self, items: Iterable[Given]) -> Iterator[list[_Entry]]:
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

    def _load(self, given: Given) -> _Entry:
        if not isinstance(given, Item):
            return given
        texts = tuple(text.strip() for text in given.texts if text.strip())
        loaded = _Loaded(dataclasses.replace(given, texts=texts))
        try:
            if not texts and not (given.image and given.speech):
                raise Unusable("no text", "a caption or transcript is missing or empty")
            if isinstance(given.image, Codes):
                loaded.codes[Image] = self._builder.codes(Image, given.image)
            elif given.image is not None:
                loaded.image = _told("bad picture", functools.partial(self._picture, given.image))
            if isinstance(given.speech, Codes):
                loaded.codes[Speech] = self._builder.codes(Speech, given.speech)
            elif given.speech is not None:
                loaded.speech = _told("bad sound", functools.partial(self._sound, given.speech))
            return loaded
        except UserError as error:
            return Reject.of(given.file, given.record, error)

    def _picture(self, image: Path | Blob) -> np.ndarray:
        assert self._image is not None
        opened = read_image(image.name, data=image.data) if isinstance(image, Blob) else read_image(image)
        return self._image.prepare(opened)[0]

    def _sound(self, speech: Path | Blob | Wave) -> np.ndarray:
        codec = self._speech
        assert codec is not None
        if isinstance(speech, Wave):
            if speech.rate < 1:
                raise UserError(f"{speech.rate} Hz is no sample rate")
            wave_n = soxr.resample(speech.wave, speech.rate, codec.sample_rate, quality="HQ")
        elif isinstance(speech, Blob):
            wave_n = read_audio(speech.name, codec.sample_rate, data=speech.data)
        else:
            wave_n = read_audio(speech, codec.sample_rate)
        if not len(wave_n) or not np.isfinite(wave_n).all():
            raise UserError("no samples, or NaN or infinite ones")
        if len(wave_n) > self._builder.recipe.sequence_length * codec.hop:
            raise Unusable("too long", f"{len(wave_n) / codec.sample_rate:.1f} s of sound are more than a row takes")
        return np.ascontiguousarray(wave_n, np.float32)

    def _encode(self, entries: Sequence[_Loaded]) -> None:
        """The codes of all media that were read."""
        seen = [(entry, entry.image) for entry in entries if entry.image is not None]
        if seen:
            assert self._image is not None
            codes_bn = self._image.encode(np.stack([image for _, image in seen]))
            for (entry, _), codes_n in zip(seen, codes_bn, strict=True):
                entry.codes[Image], entry.image = Image(codes_n), None
        self.pictures += len(seen)
        for batch in _alike([(entry, entry.speech) for entry in entries if entry.speech is not None]):
            assert self._speech is not None
            waves = [wave_n for _, wave_n in batch]
            self.seconds += sum(map(len, waves)) / self._speech.sample_rate
            for (entry, _), codes_t in zip(batch, encode_speech(self._speech, waves), strict=True):
                entry.codes[Speech], entry.speech = Speech(codes_t), None


def _alike(heard: Sequence[tuple[_Loaded, np.ndarray]]) -> Iterator[list[tuple[_Loaded, np.ndarray]]]:
    """Batches of sound of about one length, the longest first."""
    ordered = sorted(heard, key=lambda pair: -len(pair[1]))
    while ordered:
        size = max(1, _SAMPLES_AT_ONCE // len(ordered[0][1]))
        yield ordered[:size]
        ordered = ordered[size:]


def _told(reason: str, read: Callable[[], np.ndarray]) -> np.ndarray:
    """What `read` returns; its error under that reason."""
    try:
        return read()
    except Unusable:
        raise
    except UserError as error:
        raise Unusable(reason, " ".join(str(error).split())) from None
