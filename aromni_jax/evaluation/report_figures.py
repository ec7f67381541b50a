"""The numbers of a report as words, bars, tables and curves, out of `metrics.json` and `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from markupsafe import Markup

from aromni_jax.evaluation.report_charts import Series, line_chart, number, stacked_bar
from aromni_jax.vocabulary import Modality

SHARES = ("wer", "exact", "digit", "accuracy", "efficiency", "share", "difference", "judged", "codec", "padded_to",
           "codec_wer", "bound", "rate_limit")  # fmt: skip
_CLOCKS = ("seconds", "first_token", "first_audio", "total")
_TASK = "loss/task/"
_WAIT = "data_wait_share"
_SPEED = {
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm, before clipping",
    "useful_tokens_per_second": "Useful tokens per second",
    "mfu_causal_bf16": "MFU (bf16 peak, causal attention)",
    _WAIT: "Share of time waiting for data",
    "goodput": "Goodput of each window",
}
_CURVES = {"text": "Text", "image": "Pictures", "speech": "Speech", "marker": "Markers"}


class Leaves:
    """Nested values of `metrics.json` that remember what has been shown, so that the rest can be listed."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._shown: set[tuple[str, ...]] = set()

    def take(self, *path: str) -> Any:
        """The value at `path`, counted as shown with all below it; None if there is none."""
        node: Any = self._values
        for name in path:
            if not isinstance(node, Mapping) or name not in node:
                return None
            node = node[name]
        self._shown.add(path)
        return node

    def mapping(self, *path: str) -> dict[str, Any]:
        """Like `take`, but an absent value is {}, and one of another type is left for `rest`."""
        found = self.take(*path)
        if isinstance(found, Mapping):
            return dict(found)
        self._shown.discard(path)
        return {}

    def number(self, *path: str) -> float | None:
        """Like `take`, but anything that is no finite number is left for `rest`."""
        found = finite(self.take(*path))
        if found is None:
            self._shown.discard(path)
        return found

    def rest(self) -> list[tuple[str, str]]:
        """(dotted path, value) of every leaf that was not taken."""
        return [
            (" / ".join(path), shown(path[-1] if path else "", value))
            for path, value in leaves(self._values)
            if not any(path[:depth] in self._shown for depth in range(len(path) + 1))
        ]


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf with its path; a list without objects in it is one leaf."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from leaves(value, (*path, str(name)))
    elif isinstance(node, list) and any(isinstance(item, (Mapping, list)) for item in node):
        for at, value in enumerate(node):
            yield from leaves(value, (*path, str(at)))
    else:
        yield path, node


def finite(value: Any) -> float | None:
    """`value` as a float if it is a finite number, else None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is an object, else {}: what a broken file has in its place is not shown."""
    return value if isinstance(value, Mapping) else {}


def percent(value: float) -> str:
    """0.0333 -> "3.3 %"."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """12.3 -> "12.3 s"; 754 -> "12 min 34 s"; 0.0321 -> "32 ms"."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def words(name: str) -> str:
    """A key as words, without the unit that its value shows: "first_token_seconds" -> "first token"."""
    return str(name).removesuffix("_seconds").replace("_", " ")


def shown(name: str, value: Any) -> str:
    """A leaf for people; the unit is read off the key's name."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(shown(name, item) for item in value) or "-"
    amount = finite(value)
    if amount is None:
        return "-" if isinstance(value, Mapping) else str(value)
    last = name.rsplit("/", 1)[-1]
    if any(part in name for part in SHARES) and -1 <= amount <= 1:
        return percent(amount)
    if last in _CLOCKS or last.endswith("_seconds"):
        return duration(amount)
    return f"{value:,}" if isinstance(value, int) else number(amount, 4)


# -- curves ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A chart with its caption; `logarithmic` is empty where only the linear one makes sense."""

    title: str
    css: str
    linear: Markup
    logarithmic: Markup
    ends: tuple[tuple[str, str, str], ...]


def curve(lines: Sequence[Mapping[str, Any]], key: str, title: str, css: str = "", both: bool = False) -> Curve | None:
    """Training and held-out lines of one key of `metrics.jsonl`; None if no line has it."""
    series = []
    for kind, name in (("train", "training"), ("eval", "held-out")):
        points = [
            (step, value)
            for line in lines
            if line.get("kind") == kind
            and (step := finite(line.get("step"))) is not None
            and (value := finite(line.get(key))) is not None
        ]
        if points:
            series.append(Series(name, f"{kind} {css}", tuple(sorted(points))))
    if not series:
        return None
    ends = tuple((line.name, number(line.points[0][1]), number(line.points[-1][1])) for line in series)
    logarithmic = line_chart(series, title=title, log=True) if both else Markup("")
    return Curve(title, css, line_chart(series, title=title), logarithmic, ends)


def loss_curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """One chart per modality."""
    found = [curve(lines, f"loss/{name}", title, f"m-{name}", both=True) for name, title in _CURVES.items()]
    return [chart for chart in found if chart]


def task_curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """One chart per task."""
    charts = [curve(lines, key, words(key.removeprefix(_TASK)).capitalize()) for key in _keys(lines, _is_task_loss)]
    return [chart for chart in charts if chart]


def speed_curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Learning rate, gradient norm, throughput and what it depends on."""
    waits = [
        {**line, _WAIT: wait / window}
        for line in lines
        if (wait := finite(line.get("data_wait_seconds"))) is not None
        and (window := finite(line.get("window_seconds")))
    ]
    charts = [curve(waits if key == _WAIT else lines, key, title) for key, title in _SPEED.items()]
    return [chart for chart in charts if chart]


def other_curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """One chart for every other number in the log."""
    used = {"step", "kind", "seconds", *(f"loss/{name}" for name in _CURVES), *_SPEED}
    charts = []
    for key in _keys(lines, lambda key: key not in used and not _is_task_loss(key)):
        css = next((f"m-{name}" for name in _CURVES if key.endswith(f"/{name}")), "")
        title = words(key).replace("/", ", ")
        charts.append(curve(lines, key, title[:1].upper() + title[1:], css))
    return [chart for chart in charts if chart]


def _is_task_loss(key: str) -> bool:
    return key.startswith(_TASK)


def _keys(lines: Sequence[Mapping[str, Any]], wanted: Callable[[str], bool]) -> list[str]:
    """Keys of numbers in any line, in order of name."""
    return sorted({k for line in lines for k, value in line.items() if finite(value) is not None and wanted(k)})


def newest(lines: Sequence[Mapping[str, Any]], kind: str, key: str) -> float | None:
    """Value of the last line of that kind which has it."""
    values = [v for line in lines if line.get("kind") == kind and (v := finite(line.get(key))) is not None]
    return values[-1] if values else None


def typical(lines: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Median over the training lines, the first (which holds compilation) left out where there are more."""
    values = [v for line in lines if line.get("kind") == "train" and (v := finite(line.get(key))) is not None]
    return median(values[1:] or values) if values else None


# -- bars and tables ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One piece of a stacked bar, or one bar of a list; `share` of the whole (or of the longest) in 0..1."""

    name: str
    text: str
    share: float
    css: str


def parts_of(values: Mapping[str, Any], text: Any = None, css: str = "c") -> tuple[Markup, list[Part]]:
    """A stacked bar of the positive numbers in `values`, and its legend; modalities keep their colours."""
    amounts = {name: amount for name, value in values.items() if (amount := finite(value)) and amount > 0}
    total = sum(amounts.values()) or 1.0
    names = [kind.name.lower() for kind in Modality]
    colours = {n: f"m-{n}" if n in names else f"{css}{at % 8}" for at, n in enumerate(amounts)}
    parts = [Part(words(n), (text or number)(v), v / total, colours[n]) for n, v in amounts.items()]
    label = ", ".join(f"{part.name} {part.share:.0%}" for part in parts)
    return stacked_bar([(part.name, part.share, part.css) for part in parts], label), parts


def bars_of(values: Mapping[str, Any], text: Any = None, longest: float | None = None) -> list[Part]:
    """A list of bars against the longest."""
    amounts = {name: amount for name, value in values.items() if (amount := finite(value)) is not None}
    top = longest or max(amounts.values(), default=0.0) or 1.0
    return [Part(words(n), (text or number)(v), min(max(v / top, 0.0), 1.0), "") for n, v in amounts.items()]


def table_of(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every leaf as (name, value)."""
    return [(" / ".join(map(words, path)), shown(path[-1], value)) for path, value in leaves(values) if path]


def is_counts(value: Any) -> bool:
    """An object that holds numbers only: drawn as bars."""
    return isinstance(value, Mapping) and bool(value) and all(finite(v) is not None for v in value.values())
