"""Sound and picture files in and out, with one clear line for every way in which a file can be bad.

Reading never trusts a file: a missing, truncated, empty, oversized or non-finite one raises `UserError`.
Writing is atomic: a reader sees the old file or the whole new one.
"""

import contextlib
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from aromni_jax.errors import UserError

MAX_PIXELS = 64_000_000
# PIL knows more, and runs other programs for some (PostScript): a picture from anywhere must not start one.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000")
MAX_SECONDS = 3600.0
_LOUDEST = 1e6  # 1 is full scale; far beyond any unit that a float file may have, and far from overflow
_BLENDED_AT_ONCE = 2**20  # pixels; the blend needs 50 bytes for each


def read_audio(path: str | os.PathLike, sample_rate: int, *, data: bytes | None = None) -> np.ndarray:
    """One sound file of any rate and channel count -> float32 [n], mono, at `sample_rate` hertz.

    Channels are averaged; the rate is changed with soxr's high-quality resampler; nothing is normalised.
    With `data`, the content of a file that lies in another one, `path` is only what errors call it.
    Raises UserError: missing, cut off, not a sound file, longer than an hour, no, NaN, infinite or absurd samples.
    """
    path = Path(path)
    if data is None:
        _must_be_file(path, "sound")
    try:
        with soundfile.SoundFile(sound_path(path) if data is None else io.BytesIO(data)) as file:
            if file.frames > MAX_SECONDS * file.samplerate:
                raise UserError(
                    f"sound file {path} is {file.frames / file.samplerate / 60:.0f} minutes long; "
                    f"the limit is {MAX_SECONDS / 60:.0f}: cut it into pieces"
                )
            rate, expected, notes = file.samplerate, file.frames, file.extra_info
            wave_nc = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise UserError(f"cannot read {path} as sound ({_short(error)}); give a WAV, FLAC or OGG file") from error
    if not len(wave_nc):
        raise UserError(f"sound file {path} holds no samples; record it again")
    if len(wave_nc) < expected or _cut_off(notes):
        raise UserError(f"sound file {path} is cut off after {len(wave_nc)} samples; fetch it again")
    if not np.isfinite(wave_nc).all():
        bad = int(np.flatnonzero(~np.isfinite(wave_nc).all(axis=1))[0])
        raise UserError(f"sound file {path} holds a NaN or infinite value at sample {bad}; export it again")
    if np.abs(wave_nc).max() > _LOUDEST:
        raise UserError(
            f"sound file {path} holds samples of {np.abs(wave_nc).max():.1e}; 1 is full scale: export it again"
        )
    wave_n = wave_nc.mean(axis=1)
    if rate != sample_rate:
        wave_n = soxr.resample(wave_n, rate, sample_rate, quality="HQ")
        if not len(wave_n):
            raise UserError(f"sound file {path} is too short: no sample is left at {sample_rate} Hz; record it again")
    return np.ascontiguousarray(wave_n, np.float32)


def write_wav(path: str | os.PathLike, wave_n: np.ndarray, sample_rate: int, comment: str = "") -> None:
    """Writes float [n] in [-1, 1] (clipped) as a mono 16-bit PCM WAV, atomically; `comment` as `read_comment` has it.

    Raises UserError when the wave is not one-dimensional, is not finite, or the file cannot be written.
    """
    wave_n = np.asarray(wave_n, np.float32)
    if wave_n.ndim != 1:
        raise UserError(f"cannot write {path}: a mono wave has one axis, this one has shape {wave_n.shape}")
    if not np.isfinite(wave_n).all():
        raise UserError(f"cannot write {path}: the wave holds NaN or infinite values")
    pcm_n = np.round(np.clip(wave_n, -1, 1) * 32767).astype(np.int16)

    def write(temporary: Path) -> None:
        with soundfile.SoundFile(
            sound_path(temporary), "w", sample_rate, channels=1, subtype="PCM_16", format="WAV"
        ) as file:
            if comment:
                file.comment = comment
            file.write(pcm_n)

    write_atomic(path, write)


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS, *, data: bytes | None = None) -> Image.Image:
    """One picture file -> PIL RGB image, turned upright by its EXIF tag, transparency laid on white.

    With `data`, the content of a file that lies in another one, `path` is only what errors call it.
    Raises UserError: missing, not a picture, truncated, more than `max_pixels` pixels.
    """
    path = Path(path)
    if data is None:
        _must_be_file(path, "picture")
    opening = path if data is None else io.BytesIO(data)
    with _picture_errors(str(path)), Image.open(opening, formats=PICTURE_FORMATS) as opened:
        return to_rgb(opened, str(path), max_pixels)


def to_rgb(image: Image.Image, name: str = "given", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """PIL image of any mode -> RGB, turned upright by its EXIF tag, transparency laid on white (SPEC 7.3).

    Raises UserError: no pixels, more than `max_pixels` of them, or its file, which PIL reads only now, is damaged.
    """
    if not 0 < image.width * image.height <= max_pixels:
        raise UserError(f"picture {name} has {image.width}x{image.height} pixels; wanted: 1 to {max_pixels} of them")
    with _picture_errors(name):
        return _flatten(ImageOps.exif_transpose(image))


@contextlib.contextmanager
def _picture_errors(name: str) -> Iterator[None]:
    """What PIL raises on a bad file -> one line; what it only warns of (odd EXIF, many pixels) passes in silence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"picture {name} is too large ({_short(error)}); make it smaller") from error
    except Exception as error:  # PIL raises many kinds on broken files, now and then even TypeError
        raise UserError(f"cannot read {name} as a picture ({_short(error)}); give a whole PNG or JPEG") from error


def _flatten(image: Image.Image) -> Image.Image:
    """PIL image of any mode -> RGB; transparent parts are blended on white, cut to whole numbers (SPEC 7.3)."""
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: PIL's own convert would clip it
        wide = np.asarray(image, np.float64)
        grey = np.where(wide == image.info.get("transparency"), 255, (wide / 257).clip(0, 255))
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba_n4 = np.asarray(image.convert("RGBA")).reshape(-1, 4)
        if (rgba_n4[:, 3] < 255).any():
            rgb_n3 = np.empty((len(rgba_n4), 3), np.uint8)
            for start in range(0, len(rgba_n4), _BLENDED_AT_ONCE):
                part = slice(start, start + _BLENDED_AT_ONCE)
                alpha_n1 = rgba_n4[part, 3:] / 255  # float64, as in the reference: a float32 would round other values
                rgb_n3[part] = ((1 - alpha_n1) * 255 + alpha_n1 * rgba_n4[part, :3]).astype(np.uint8)
            return Image.fromarray(rgb_n3.reshape(image.height, image.width, 3))
    return image.convert("RGB")


def cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scales a picture so that it just covers width x height pixels, and cuts out the middle (SPEC 7.3).

    Raises UserError: so long and thin that the scaled picture has more than MAX_PIXELS pixels.
    """
    scale = max(width / image.width, height / image.height)
    scaled = max(width, round(image.width * scale)), max(height, round(image.height * scale))  # half to even
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise UserError(
            f"a picture of {image.width}x{image.height} pixels is too long and thin to be scaled to "
            f"{width}x{height}: cut it first"
        )
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def write_png(path: str | os.PathLike, image: Image.Image | np.ndarray, comment: str = "") -> None:
    """Writes a PIL image or uint8 [H, W] / [H, W, 3] as PNG, atomically; UserError when it cannot.

    `comment` is what `read_comment` will find.
    """
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
            raise UserError(
                f"cannot write {path}: a picture is uint8 [H, W] or [H, W, 3], "
                f"this is {pixels.dtype} {list(pixels.shape)}"
            )
        image = Image.fromarray(pixels)
    notes = PngInfo()
    if comment:
        notes.add_text("Comment", comment)
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG", optimize=True, pnginfo=notes))


def read_comment(path: str | os.PathLike) -> str:
    """The comment of a file of `write_png` or `write_wav`; "" when there is none, or no such file."""
    if not Path(path).is_file():
        return ""
    try:
        if Path(path).suffix == ".png":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(path) as opened:
                    return str(opened.info.get("Comment", ""))
        with soundfile.SoundFile(sound_path(path)) as file:
            return file.comment
    except Exception:  # not whole, or not ours: PIL has many kinds for it
        return ""


def sound_path(path: str | os.PathLike) -> str | bytes:
    """As soundfile takes it: it cannot encode a name that is no text."""
    name = os.fspath(path)
    return os.fsencode(name) if any("\ud800" <= letter <= "\udfff" for letter in name) else name


def write_atomic(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary path in the same folder)` and renames the result to `path`."""
    path = Path(path)
    # Of a long name the beginning only: the temporary one must not be too long where the name itself is not.
    temporary = path.with_name(f".{path.name[:32]}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"cannot write {path} ({_short(error)}); check the folder and the free space") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _cut_off(notes: str) -> bool:
    """Whether libsndfile's notes say that a file has fewer bytes than its header promises (WAV, AIFF, W64, RF64).

    A writer into a pipe cannot know the size and promises (almost) 4 GiB: that file is whole.
    """
    sizes = re.findall(r"^ *(?:data|SSND|riff|Riff size) : (\d+) \(should be (\d+)\)", notes, re.MULTILINE)
    return any(int(there) < int(promised) < 0x7FFFF000 for promised, there in sizes)


def _must_be_file(path: Path, what: str) -> None:
    try:
        found = path.exists()
    except OSError as error:  # a name that no file can have
        raise UserError(f"{what} file {str(path)[:80]}...: {error.strerror}; check the path") from error
    if not found:
        raise UserError(f"{what} file {path} does not exist; check the path")
    if not path.is_file():
        raise UserError(f"{what} file {path} is not a file; give the path of one file")


def _short(error: Exception) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text[:120].rstrip(".")
