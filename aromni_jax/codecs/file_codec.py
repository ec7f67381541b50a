"""One face for both codecs, for work on files: read, encode, decode, measure, write, whichever the kind."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from aromni_jax.codecs import folder as store
from aromni_jax.codecs import measure, vq, vqgan_files, wavtokenizer_files
from aromni_jax.codecs.code_files import CodeRecord
from aromni_jax.codecs.image import ImageCodec
from aromni_jax.codecs.media import read_audio, read_image, write_png, write_wav
from aromni_jax.codecs.media_files import Kind, MediaFile
from aromni_jax.codecs.speech import SpeechCodec
from aromni_jax.errors import UserError
from aromni_jax.worlds import WORLDS

_PIXELS_AT_ONCE = 2**24  # numbers of prepared pictures in a batch: 64 MiB
_SAMPLES_AT_ONCE = 2**22  # of a batch of waves, padding included; a longer wave is a batch of its own


class FileCodec(Protocol):
    """A codec as work on files needs it; media are numpy arrays, all of a batch at once.

    Attributes:
      kind: of its media. suffix: of a decoded file. fingerprint, num_codes: of the codec.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def suffix(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def num_codes(self) -> int: ...

    @property
    def facts(self) -> dict[str, float]:
        """Size and rate of its codes, by name."""

    def read(self, file: MediaFile) -> np.ndarray:
        """Prepared as the codec takes it; UserError as the readers raise it."""

    def cost(self, file: MediaFile) -> int:
        """What it takes of `room`, as told by the file's header."""

    def code_cost(self, record: CodeRecord) -> int:
        """As `cost`, of what is decoded."""

    @property
    def room(self) -> int:
        """Bounds (rows of a batch) * (cost of the largest)."""

    def encode(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Prepared media -> int32 codes of each."""

    def check(self, record: CodeRecord, where: str) -> None:
        """UserError, prefixed by `where`, unless the record can be decoded."""

    def decode(self, records: Sequence[CodeRecord]) -> list[np.ndarray]:
        """Media as they are written; UserError, even for no records, if the codec has no decoder."""

    def shown(self, prepared: np.ndarray) -> np.ndarray:
        """A prepared medium as `decode` would give it."""

    def samples(self, prepared: np.ndarray) -> int:
        """Of `CodeRecord.samples`."""

    def amount(self, media: np.ndarray) -> float:
        """How much a medium is: 1 for a picture, seconds of sound."""

    def distances(self, media: np.ndarray, copy: np.ndarray) -> dict[str, float]:
        """What the codec lost, by name."""

    def write(self, path: Path, media: np.ndarray, mark: str) -> None:
        """Into a file, atomically, with `mark` in its comment."""


@dataclasses.dataclass(frozen=True)
class PictureFiles:
    """A `FileCodec` of pictures: uint8 [H, W] or [H, W, 3], prepared float32 [H, W, C] in [-1, 1]."""

    codec: ImageCodec
    kind: Kind = "image"
    suffix: str = ".png"

    @property
    def fingerprint(self) -> str:
        return self.codec.fingerprint

    @property
    def num_codes(self) -> int:
        return self.codec.num_codes

    @property
    def facts(self) -> dict[str, float]:
        config, bits = self.codec.config, self.codec.tokens_per_image * np.log2(self.num_codes)
        return {
            "width": config.width,
            "height": config.height,
            "channels": config.channels,
            "codes_per_picture": self.codec.tokens_per_image,
            "bits_per_pixel": round(float(bits / (config.width * config.height)), 4),
        }

    def read(self, file: MediaFile) -> np.ndarray:
        return self.codec.prepare(read_image(file.path))[0]

    def cost(self, file: MediaFile) -> int:
        del file
        return self.codec.config.width * self.codec.config.height * self.codec.config.channels

    def code_cost(self, record: CodeRecord) -> int:
        del record
        return self.codec.config.width * self.codec.config.height * self.codec.config.channels

    @property
    def room(self) -> int:
        return _PIXELS_AT_ONCE

    def encode(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(self.codec.encode(np.stack(rows)))

    def check(self, record: CodeRecord, where: str) -> None:
        _check_codes(record, self.num_codes, where)
        if len(record.codes) != self.codec.tokens_per_image:
            raise UserError(f"{where}: {len(record.codes)} codes; a picture has {self.codec.tokens_per_image}")

    def decode(self, records: Sequence[CodeRecord]) -> list[np.ndarray]:
        codes_bn = np.array([record.codes for record in records], np.int32).reshape(-1, self.codec.tokens_per_image)
        return [np.asarray(image) for image in self.codec.to_pil(codes_bn)]

    def shown(self, prepared: np.ndarray) -> np.ndarray:
        pixels = np.round((prepared + 1) * 127.5).astype(np.uint8)
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels

    def samples(self, prepared: np.ndarray) -> int:
        del prepared
        return 0

    def amount(self, media: np.ndarray) -> float:
        del media
        return 1

    def distances(self, media: np.ndarray, copy: np.ndarray) -> dict[str, float]:
        return {"psnr_db": round(measure.psnr(media, copy), 2), "ssim": round(measure.ssim(media, copy), 4)}

    def write(self, path: Path, media: np.ndarray, mark: str) -> None:
        write_png(path, media, comment=mark)


@dataclasses.dataclass(frozen=True)
class SoundFiles:
    """A `FileCodec` of speech: float32 [n] at the codec's rate, prepared and written alike."""

    codec: SpeechCodec
    kind: Kind = "speech"
    suffix: str = ".wav"

    @property
    def fingerprint(self) -> str:
        return self.codec.fingerprint

    @property
    def num_codes(self) -> int:
        return self.codec.num_codes

    @property
    def facts(self) -> dict[str, float]:
        rate = self.codec.tokens_per_second
        return {
            "sample_rate": self.codec.sample_rate,
            "codes_per_second": rate,
            "bits_per_second": round(float(rate * np.log2(self.num_codes)), 1),
        }

    def read(self, file: MediaFile) -> np.ndarray:
        return read_audio(file.path, self.codec.sample_rate)

    def cost(self, file: MediaFile) -> int:
        return round(file.seconds * self.codec.sample_rate)

    def code_cost(self, record: CodeRecord) -> int:
        return len(record.codes) * self.codec.hop

    @property
    def room(self) -> int:
        return _SAMPLES_AT_ONCE

    def encode(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        lengths = [len(row) for row in rows]
        wave_bn = np.zeros((len(rows), max(lengths)), np.float32)
        for padded, row in zip(wave_bn, rows, strict=True):
            padded[: len(row)] = row
        return list(self.codec.encode(wave_bn, lengths))

    def check(self, record: CodeRecord, where: str) -> None:
        _check_codes(record, self.num_codes, where)
        hop, codes = self.codec.hop, len(record.codes)
        if not (codes - 1) * hop < record.samples <= codes * hop:
            raise UserError(f"{where}: {record.samples} samples do not fit {codes} codes of {hop} samples each")

    def decode(self, records: Sequence[CodeRecord]) -> list[np.ndarray]:
        waves = self.codec.decode([record.codes for record in records])
        return [np.clip(wave[: record.samples], -1, 1) for wave, record in zip(waves, records, strict=True)]

    def shown(self, prepared: np.ndarray) -> np.ndarray:
        return prepared

    def samples(self, prepared: np.ndarray) -> int:
        return len(prepared)

    def amount(self, media: np.ndarray) -> float:
        return len(media) / self.codec.sample_rate

    def distances(self, media: np.ndarray, copy: np.ndarray) -> dict[str, float]:
        return {
            "log_spectral_distance_db": round(measure.log_spectral_distance(media, copy), 2),
            "snr_db": round(measure.signal_to_noise(media, copy), 2),
        }

    def write(self, path: Path, media: np.ndarray, mark: str) -> None:
        write_wav(path, media, self.codec.sample_rate, comment=mark)


def _check_codes(record: CodeRecord, num_codes: int, where: str) -> None:
    try:
        vq.check_codes(record.codes, num_codes, record.kind)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def kinds_at(path_or_name: str | os.PathLike) -> list[Kind]:
    """For which media there is a codec: a world, a folder with either or both, published files.

    Raises UserError: for none.
    """
    path = Path(path_or_name)
    kinds: list[Kind] = []
    if _has_card(path_or_name, "image") or vqgan_files.describes(path):
        kinds.append("image")
    if _has_card(path_or_name, "speech") or wavtokenizer_files.locate(path):
        kinds.append("speech")
    if not kinds:
        raise UserError(
            f"no codec at {path_or_name}: give a folder with {store.CARD}, or a published VQGAN or WavTokenizer, or a "
            f"Hugging Face Chameleon checkpoint, or the name of a shipped world ({' or '.join(WORLDS)})"
        )
    return kinds


def load_file_codec(path_or_name: str | os.PathLike, kind: Kind) -> FileCodec:
    """UserError as `ImageCodec.load` and `SpeechCodec.load` raise it."""
    return (
        PictureFiles(ImageCodec.load(path_or_name)) if kind == "image" else SoundFiles(SpeechCodec.load(path_or_name))
    )


def _has_card(path_or_name: str | os.PathLike, kind: Kind) -> bool:
    folder = store.locate(path_or_name, kind)
    return folder is not None and store.kind_of(folder) == kind
