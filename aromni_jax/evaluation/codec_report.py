"""The page of a codec: what goes in beside what comes out, and figures of all that was given.

Media are kept for a few files of each kind only, so that neither the page nor the memory grows with the inputs.
"""

from __future__ import annotations

import heapq
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import soundfile
from PIL import Image

import aromni_jax
from aromni_jax.codecs.file_codec import FileCodec
from aromni_jax.codecs.media import write_atomic
from aromni_jax.codecs.media_files import Kind, MediaFile
from aromni_jax.codecs.transcode import Bar, Clock, Codecs, Count, RoundTrip, Totals, round_trips
from aromni_jax.errors import UserError
from aromni_jax.evaluation import report_html, report_media

if TYPE_CHECKING:
    from aromni_jax.evaluation.report_samples import Segment

_MEDIA_BYTES = 12_000_000  # of a page, both kinds together
_CLIP_SECONDS = 12.0  # of a player
_BANDS, _FRAMES = 96, 640  # of a spectrogram
_DIFFERENCE = 2  # times what a pixel is off
_NAMED = 20  # reasons of failures on the page
_WORST: dict[Kind, tuple[str, float]] = {"image": ("psnr_db", 1.0), "speech": ("log_spectral_distance_db", -1.0)}


@dataclass(frozen=True)
class Item:
    """A file on the page: `parts` are original and reconstruction, and of a picture the difference."""

    name: str
    why: str
    parts: tuple[Segment, ...]
    figures: tuple[tuple[str, str], ...]
    note: str

    @property
    def media_bytes(self) -> int:
        """Length of its data URIs."""
        return sum(len(part.uri) + len(part.picture) for part in self.parts)


class Chosen:
    """The round trips of one kind that the page shows: half of them spread over all, half of them the worst.

    Args:
      files: all of this kind. shown: how many to keep.
    """

    def __init__(self, kind: Kind, files: Sequence[MediaFile], shown: int) -> None:
        self._figure, self._sign = _WORST[kind]
        self._shown = shown
        few = shown if len(files) <= shown else shown - shown // 2
        self._spread = {files[int(at)] for at in np.linspace(0, len(files) - 1, min(few, len(files)))}
        self._among: list[RoundTrip] = []
        self._worst: list[tuple[float, str, str, RoundTrip]] = []

    def offer(self, trip: RoundTrip) -> None:
        """One of all, which is kept or not."""
        if trip.file in self._spread:
            self._among.append(trip)
            return
        badness = -self._sign * trip.record.figures[self._figure]
        # A file may come under two names, as one of a folder and of a folder below it.
        heapq.heappush(self._worst, (badness, str(trip.file.path), trip.file.name, trip))
        if len(self._worst) > self._shown:
            heapq.heappop(self._worst)

    def trips(self) -> list[tuple[RoundTrip, str]]:
        """(round trip, why it is here): those spread over all by name, then the worst, worst first."""
        among = sorted(self._among, key=lambda trip: trip.file.name)
        worst = [trip for *_, trip in sorted(self._worst, key=lambda row: row[:3], reverse=True)]
        rest = worst[: self._shown - len(among)]  # more than half where some of those chosen could not be read
        return [(trip, "") for trip in among] + [(trip, "among the worst") for trip in rest]


def write_codec_report(
    path: Path, files: Sequence[MediaFile], codecs: Codecs, *, name: str, bar: Bar, count: Count, shown: int = 12
) -> None:
    """Writes the page: totals over all files, and `shown` of each kind to look at and to listen to.

    Args:
      name: of the codec, as it was given. count: gets what becomes of the files.

    Raises:
      UserError: jinja2 is not installed, `path` is a folder or an input, a codec without decoder, no readable file.
    """
    if shown < 1:
        raise UserError(f"--shown {shown}: the page shows one file at least")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of the page, such as {path / 'codec.html'}")
    if os.path.realpath(path) in {os.path.realpath(file.path) for file in files}:
        raise UserError(f"{path} is one of the inputs: give another name of the page")
    template = report_html.renderer("codec_report.html")
    for codec in codecs.values():
        codec.decode([])  # raises now what it would raise after the first batch
    clocks = {kind: Clock() for kind in codecs}
    totals = {kind: Totals(codec) for kind, codec in codecs.items()}
    chosen = {kind: Chosen(kind, [file for file in files if file.kind == kind], shown) for kind in codecs}
    for codec, batch in round_trips(files, codecs, bar, count, clocks):
        for trip in batch:
            totals[codec.kind].add(trip.record)
            chosen[codec.kind].offer(trip)
        count.made += len(batch)
    if not count.made:
        raise UserError(f"none of the {len(files)} files could be read: there is nothing to show")
    sections = [
        _section(codec, totals[kind], clocks[kind], chosen[kind], _MEDIA_BYTES // len(codecs))
        for kind, codec in codecs.items()
        if totals[kind].files
    ]
    page = {
        "name": Path(name).name or name,
        "created": f"{datetime.now():%d %B %Y, %H:%M}".lstrip("0"),
        "files": count.made,
        "sections": sections,
        "errors": count.reasons[:_NAMED],
        "failed": count.failed,
        "environment": [
            ("codec", name),
            *((f"fingerprint, {kind}", codec.fingerprint) for kind, codec in codecs.items()),
            ("aromni_jax", aromni_jax.__version__),
            ("jax", jax.__version__),
            ("device", jax.devices()[0].device_kind),
        ],
    }
    html = template(page)
    write_atomic(path, lambda temporary: temporary.write_bytes(html))


def _section(codec: FileCodec, totals: Totals, clock: Clock, chosen: Chosen, budget: int) -> dict[str, Any]:
    """Variables of one kind; `budget` bounds the bytes of its media."""
    from aromni_jax.evaluation.report_charts import Series, histogram, line_chart, number

    summary, css = totals.summary(), f"m-{codec.kind}"
    items = []
    for trip, why in chosen.trips():
        item = _item(codec, trip, why)
        if item.media_bytes <= budget:
            items.append(item)
            budget -= item.media_bytes
    charts = []
    for key, values in totals.figures.items():
        title, unit, better = _FIGURES[key]
        row = sorted(values, reverse=better == "higher")
        points = tuple((100 * (at + 0.5) / len(row), value) for at, value in enumerate(row))
        drawing = line_chart([Series(title, css, points)], title=title, x_label="% of the files, best first")
        caption = f"best {number(row[0])}, middle {number(float(np.median(row)))}, worst {number(row[-1])} {unit}"
        charts.append((f"{title}{', ' if unit else ''}{unit} ({better} is better)", drawing, caption))
    use = np.sort(totals.use_k)[::-1] / totals.use_k.sum()
    return {
        "kind": codec.kind,
        "css": css,
        "cards": _cards(codec, summary, clock),
        "items": items,
        "files": totals.files,
        "charts": charts,
        "use": histogram(use * 100, title="share of a code in all codes, %", x_label="codes, most used first", css=css),
        "summary": summary,
        "clip": _CLIP_SECONDS,
        "difference": _DIFFERENCE,
    }


_FIGURES = {  # name -> (title, unit, which is better)
    "psnr_db": ("PSNR", "dB", "higher"),
    "ssim": ("SSIM", "", "higher"),
    "log_spectral_distance_db": ("Log-spectral distance", "dB", "lower"),
    "snr_db": ("Signal to noise", "dB", "higher"),
}


def _cards(codec: FileCodec, summary: Mapping[str, Any], clock: Clock) -> list[tuple[str, str, str]]:
    """(label, value, a line about it) of the boxes at the head of a kind."""
    from aromni_jax.evaluation.report_charts import number

    cards = [
        (title, f"{number(summary[key])} {unit}".strip(), f"mean; {better} is better")
        for key, (title, unit, better) in _FIGURES.items()
        if key in summary
    ]
    bits = f"{np.log2(codec.num_codes):.3g} bits"
    if codec.kind == "image":
        size = f"{summary['codes_per_picture']} codes of {bits} for {summary['width']}x{summary['height']} pixels"
        cards.append(("bits per pixel", number(summary["bits_per_pixel"]), size))
    else:
        size = f"{number(summary['codes_per_second'])} codes of {bits} a second, {summary['sample_rate']:,} Hz"
        cards.append(("bits per second", number(summary["bits_per_second"]), size))
    share = f"{summary['codes_used']:,} of {summary['codes']:,}"
    cards.append(("codes used", share, f"perplexity {number(summary['perplexity'])}"))
    for way in ("encode", "decode"):
        warm, whole = (amount / max(seconds, 1e-9) for amount, seconds in (clock.warm[way], clock.whole[way]))
        label = f"{way}, {'pictures a second' if codec.kind == 'image' else 'times real time'}"
        cards.append((label, number(warm), f"a batch; {number(whole)} in the whole run, compilation included"))
    return cards


def _item(codec: FileCodec, trip: RoundTrip, why: str) -> Item:
    from aromni_jax.evaluation.report_charts import number

    parts, note = (_pictures(trip), "") if codec.kind == "image" else _sounds(codec, trip)
    figures = tuple(
        (_FIGURES[key][0], f"{number(value)} {_FIGURES[key][1]}".strip()) for key, value in trip.record.figures.items()
    )
    return Item(trip.file.name, why, parts, figures, note)


def _pictures(trip: RoundTrip) -> tuple[Segment, ...]:
    from aromni_jax.evaluation.report_samples import Segment

    off = np.abs(trip.media.astype(np.int16) - trip.copy)
    off = (off.max(axis=-1) if off.ndim == 3 else off) * _DIFFERENCE
    pictures = {
        "original": Image.fromarray(trip.media),
        "reconstruction": Image.fromarray(trip.copy),
        "difference": report_media.coloured(np.minimum(off, 255).astype(np.uint8)),
    }
    factor = report_media.enlargement(trip.media.shape[1])
    height, width = (factor * side for side in trip.media.shape[:2])
    return tuple(
        Segment("image", label=label, uri=report_media.png_uri(image), width=width, height=height, crisp=factor > 1)
        for label, image in pictures.items()
    )


def _sounds(codec: FileCodec, trip: RoundTrip) -> tuple[tuple[Segment, ...], str]:
    """Original and reconstruction, both against the louder one's maximum, and what was cut."""
    from aromni_jax.evaluation.report_samples import Segment

    rate = int(codec.facts["sample_rate"])
    seconds = len(trip.media) / rate
    waves = {
        label: np.clip(wave[: round(_CLIP_SECONDS * rate)], -1, 1)
        for label, wave in (("original", trip.media), ("reconstruction", trip.copy))
    }
    spectra = {label: report_media.mel_decibels(wave, rate, _BANDS, _FRAMES) for label, wave in waves.items()}
    loudest = max(float(decibels.max()) for decibels in spectra.values())
    parts = tuple(
        Segment(
            "speech",
            label=label,
            uri=report_media.data_uri("audio/flac", _flac(wave, rate)),
            picture=report_media.spectrogram_uri(spectra[label], loudest),
            seconds=seconds,
        )
        for label, wave in waves.items()
    )
    cut = f", the first {_CLIP_SECONDS:g} s here" if seconds > _CLIP_SECONDS else ""
    return parts, f"{seconds:.1f} s{cut}"


def _flac(wave_n: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.round(wave_n * 32767).astype(np.int16), rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
