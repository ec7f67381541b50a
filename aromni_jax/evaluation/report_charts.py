"""Small inline SVG drawings for the report: line charts, score scales and stacked bars.

Colours are CSS classes of the page, so that one drawing serves the light and the dark theme. Every label is
escaped; the functions return `markupsafe.Markup`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 8, 40
_MOST_POINTS = 150
_MOST_DOTS = 30
_MOST_BARS = 180


@dataclass(frozen=True)
class Series:
    """One line of a chart: points in order of x, every y finite; `css` is a class of the page's style."""

    name: str
    css: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Bucket:
    """Neighbouring points drawn as one: mean of x and y, and the range of y."""

    x: float
    y: float
    low: float
    high: float


def number(value: float, digits: int = 3) -> str:
    """A number for people: `digits` significant digits, thousands as 1,234, k, M and B from 10,000 on."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if size >= limit:
            return f"{_trim(value / (1e3 if unit == ' k' else limit), digits)}{unit}"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return _trim(value, digits)


def _trim(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def buckets(points: Sequence[tuple[float, float]], most: int = _MOST_POINTS) -> list[Bucket]:
    """At most `most` buckets of equal count; the last bucket ends at the last point."""
    size = max(1, math.ceil(len(points) / most))
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [
        Bucket(
            sum(x for x, _ in group) / len(group),
            sum(y for _, y in group) / len(group),
            min(y for _, y in group),
            max(y for _, y in group),
        )
        for group in groups
    ]


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `about` of them."""
    raw = (high - low) / about
    if raw < sys.float_info.min:  # nothing between them, or less than a float can be divided by
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * power for unit in (1, 2, 2.5, 5, 10) if unit * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; powers of ten alone over more than three decades; round
    numbers where that leaves fewer than three.
    """
    units: tuple[int, ...] = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [t for power in powers for unit in units if low <= (t := unit * 10.0**power) <= high]
    return ticks if len(ticks) > 2 else linear_ticks(low, high)


class _Axis:
    """Maps data to pixels along one direction."""

    def __init__(self, low: float, high: float, start: float, stop: float, log: bool = False) -> None:
        self.log = log
        self.low, self.high = (math.log(low), math.log(high)) if log else (low, high)
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        place = math.log(value) if self.log else value
        span = (self.high - self.low) or 1.0
        return round(self.start + (place - self.low) / span * (self.stop - self.start), 1)


def line_chart(series: Sequence[Series], *, title: str, x_label: str = "step", log: bool = False) -> Markup:
    """Lines over a common x axis; the noise of a long series is a band from its lowest to its highest value.

    With `log`, points at or below zero are left out. Returns an empty string when nothing can be drawn.
    """
    kept = [
        Series(line.name, line.css, tuple(p for p in line.points if p[1] > 0) if log else line.points)
        for line in series
    ]
    kept = [line for line in kept if line.points]
    if not kept:
        return Markup("")
    drawn = [(line, buckets(line.points)) for line in kept]
    xs = [x for line in kept for x, _ in line.points]
    low = min(bucket.low for _, row in drawn for bucket in row)
    high = max(bucket.high for _, row in drawn for bucket in row)
    if log:
        low, high = low / 1.08, high * 1.08
    else:
        low = 0.0 if 0 <= low < 0.6 * high else low  # a loss is read against zero unless it hardly moves
        pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
        high, low = high + pad, low - (pad if low else 0.0)
    to_x = _Axis(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
    to_y = _Axis(low, high, HEIGHT - _BOTTOM, _TOP, log)

    grid = [_rule(to_y(tick), number(tick)) for tick in (log_ticks(low, high) if log else linear_ticks(low, high))]
    grid += [_mark(to_x(tick), number(tick)) for tick in linear_ticks(min(xs), max(xs), 4)]
    grid.append(_mark((_LEFT + WIDTH - _RIGHT) / 2, str(escape(x_label)), HEIGHT - 7))
    lines = [_line(line, row, to_x, to_y) for line, row in drawn]
    hover = [
        {
            "name": line.name,
            "points": [[to_x(b.x), to_y(b.y), number(b.x), number(b.y)] for b in row],
        }
        for line, row in drawn
    ]
    label = f"{title}: " + "; ".join(
        f"{line.name} from {number(line.points[0][1])} to {number(line.points[-1][1])}" for line in kept
    )
    return _chart(label, x_label, hover, grid + lines)


def histogram(values: Sequence[float], *, title: str, x_label: str, css: str) -> Markup:
    """A bar for each value, none below zero; of more than fit, a bar for the mean of neighbours."""
    drawn = buckets(list(enumerate(values, start=1)), _MOST_BARS)
    high = 1.05 * max(bucket.y for bucket in drawn) or 1.0
    to_x, to_y = _Axis(0, len(values), _LEFT, WIDTH - _RIGHT), _Axis(0, high, HEIGHT - _BOTTOM, _TOP)
    parts = [_rule(to_y(tick), number(tick)) for tick in linear_ticks(0, high)]
    ticks = [tick for tick in linear_ticks(0, len(values), 4) if tick >= 1 and tick == int(tick)]
    parts += [_mark(to_x(tick), number(tick)) for tick in ticks]
    parts.append(_mark((_LEFT + WIDTH - _RIGHT) / 2, str(escape(x_label)), HEIGHT - 7))
    wide = (WIDTH - _RIGHT - _LEFT) / len(drawn)
    for at, bucket in enumerate(drawn):
        y = to_y(bucket.y)
        x, width = _LEFT + at * wide, wide * (0.84 if wide > 3 else 1)
        parts.append(f'<rect class="bar {css}" x="{x:.2f}" y="{y}" width="{width:.2f}" height="{to_y(0) - y:.1f}"/>')
    points = [[to_x(b.x), to_y(b.y), number(b.x), number(b.y)] for b in drawn]
    label = f"{title}: from {number(drawn[0].y)} to {number(drawn[-1].y)}"
    return _chart(label, x_label, [{"name": title, "points": points}], parts)


def _rule(y: float, text: str) -> str:
    """A line of the grid with its value."""
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5}" text-anchor="end">{text}</text>'
    )


def _mark(x: float, text: str, y: float = HEIGHT - 24) -> str:
    """A text below the x axis."""
    anchor = "end" if x > WIDTH - _RIGHT - 12 else "middle"
    return f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _chart(label: str, x_label: str, hover: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> Markup:
    """The whole drawing; `hover`: name and points [x, y, x as text, y as text] of each line, for the page's script."""
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'data-x="{escape(x_label)}" data-lines="{escape(json.dumps(hover, separators=(",", ":")))}">'
        f'{"".join(parts)}<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/></svg>'
    )


def _line(series: Series, row: Sequence[Bucket], to_x: _Axis, to_y: _Axis) -> str:
    parts = []
    if len(row) < len(series.points):
        upper = [f"{to_x(b.x)},{to_y(b.high)}" for b in row]
        lower = [f"{to_x(b.x)},{to_y(b.low)}" for b in reversed(row)]
        parts.append(f'<polygon class="band {series.css}" points="{" ".join(upper + lower)}"/>')
    path = " ".join(f"{to_x(b.x)},{to_y(b.y)}" for b in row)
    parts.append(f'<polyline class="line {series.css}" points="{path}"/>')
    if len(row) == 1 or (series.css.startswith("eval") and len(row) <= _MOST_DOTS):
        parts += [f'<circle class="dot {series.css}" cx="{to_x(b.x)}" cy="{to_y(b.y)}" r="2.6"/>' for b in row]
    return "".join(parts)


def score_scale(
    value: float, low: float | None, high: float | None, bound: float | None, lower_is_better: bool
) -> Markup:
    """A score on a track from 0 to 100 %: dot, 95 % whisker, and the side of the bound that counts as met, shaded."""

    def to_x(amount: float) -> float:
        return round(8 + 224 * min(max(amount, 0.0), 1.0), 1)

    parts = [f'<line class="track" x1="{to_x(0)}" x2="{to_x(1)}" y1="11" y2="11"/>']
    if bound is not None:
        x = to_x(bound)
        begin, end = (to_x(0), x) if lower_is_better else (x, to_x(1))
        parts.append(f'<rect class="zone" x="{begin}" y="4" width="{end - begin:.1f}" height="14" rx="2"/>')
        parts.append(f'<line class="bound" x1="{x}" x2="{x}" y1="1" y2="21"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="whisker" x1="{to_x(low)}" x2="{to_x(high)}" y1="11" y2="11"/>')
    parts.append(f'<circle class="value" cx="{to_x(value)}" cy="11" r="4"/>')
    return Markup(f'<svg class="scale" viewBox="0 0 240 22" aria-hidden="true">{"".join(parts)}</svg>')


def stacked_bar(parts: Sequence[tuple[str, float, str]], label: str) -> Markup:
    """One bar cut into (name, size, css class) pieces, proportional to size."""
    total = sum(size for _, size, _ in parts) or 1.0
    shapes, at = [], 0.0
    for name, size, css in parts:
        width = 1000 * size / total
        shapes.append(
            f'<rect class="{css}" x="{at:.1f}" width="{max(width - 2, 1):.1f}" height="28">'
            f"<title>{escape(name)}: {size / total:.1%}</title></rect>"
        )
        at += width
    return Markup(
        f'<svg class="stack" viewBox="0 0 1000 28" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(shapes)}</svg>'
    )
