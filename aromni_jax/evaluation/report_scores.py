"""Scores of a report: the held-out table against its bounds, and the ablation table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from aromni_jax.evaluation.report_charts import score_scale
from aromni_jax.evaluation.report_figures import SHARES, finite, leaves, percent, shown, words

# What a held-out score means: key in `held_out` -> (title, one line). The measure is one of MEASURES.
SCORED = {
    "asr": ("Speech to text", "The model hears speech and writes it down."),
    "tts": (
        "Text to speech",
        "The model speaks a written text; an independent recogniser writes down what it hears.",
    ),
    "caption": ("Picture to text", "The model sees a drawing and writes what it shows."),
    "t2i": ("Text to picture", "The model draws what a text names; an independent judge says what it sees."),
    "speech_to_image": (
        "Speech to picture",
        "The model hears speech and draws what it is about; an independent judge says what it sees.",
    ),
    "image_to_speech": (
        "Picture to speech",
        "The model sees a drawing and says what it shows; an independent recogniser listens.",
    ),
    "chat": (
        "Chat chain",
        "Heard, written down, answered in text, speech and a picture, in one stream of tokens.",
    ),
    "held_out_voice": ("Held-out voice", "A voice that no training item used."),
    "held_out_speed": ("Held-out speed", "A speaking rate outside the range of the training items."),
}
# In the order in which an entry's main figure is looked for: key -> (what it is, lower is better).
MEASURES = {
    "difference": ("word error rate above the codec's own", True),
    "wer": ("word error rate", True),
    "exact": ("exactly right", False),
    "judged": ("judged right", False),
    "per_digit": ("digits right", False),
    "accuracy": ("right", False),
}
_LOWER = ("loss", "wer", "error", "perceptual", "difference", "seconds", "perplexity")
_PER_JUDGE = ("per judge", "per_judge")
_NOTES = {
    "wer": "word error rate",
    "codec_wer": "of the recordings through the codec",
    "codec": "of the drawings through the codec",
    "exact": "exactly right",
    "per_digit": "digits right",
}
_IN_ROW = ("interval", "items", "bound", "passed", "metric")


@dataclass(frozen=True)
class Score:
    """One row of the held-out table; `met` is None where there is no bound."""

    title: str
    explain: str
    measure: str
    value: str
    interval: str
    items: str
    bound: str
    met: bool | None
    scale: Markup
    notes: tuple[tuple[str, str], ...]
    depth: int


def scores(held_out: Mapping[str, Any], depth: int = 0) -> list[Score]:
    """Rows for every entry of `held_out` that holds a measure, its nested entries indented below it."""
    rows: list[Score] = []
    for key, entry in held_out.items():
        if not isinstance(entry, Mapping) or not entry:
            continue
        title, explain = SCORED.get(key, (words(key), ""))
        if key in _PER_JUDGE:
            rows += scores({f"judge: {name}": value for name, value in entry.items()}, depth)
            continue
        below = scores({name: value for name, value in entry.items() if isinstance(value, Mapping)}, depth + 1)
        row = _score(title, explain, entry, depth)
        if row is not None:
            rows.append(row)
        elif below:
            rows.append(Score(title, explain, "", "", "", "", "", None, Markup(""), _notes(entry), depth))
        rows += below
    return rows


def _score(title: str, explain: str, entry: Mapping[str, Any], depth: int) -> Score | None:
    candidates = (str(entry.get("metric") or ""), *MEASURES)
    key = next((name for name in candidates if finite(entry.get(name)) is not None), None)
    if key is None:
        return None
    measure, lower = MEASURES.get(key, (words(key), lower_is_better(key)))
    value, bound = float(entry[key]), finite(entry.get("bound"))
    ends = entry.get("interval")
    low, high = map(finite, ends) if isinstance(ends, list) and len(ends) == 2 else (None, None)
    met = entry.get("passed")
    if not isinstance(met, bool):
        met = None if bound is None else (value <= bound if lower else value >= bound)
    points = key == "difference"
    return Score(
        title=title,
        explain=explain,
        measure=measure,
        value=f"{100 * value:+.1f} points" if points else percent(value),
        interval="" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}",
        items=shown("items", entry["items"]) if "items" in entry else "",
        bound="" if bound is None else f"{'≤' if lower else '≥'} {100 * bound:g} {'points' if points else '%'}",
        met=met,
        scale=score_scale(value, low, high, bound, lower),
        notes=_notes(entry, key),
        depth=depth,
    )


def _notes(entry: Mapping[str, Any], main: str = "") -> tuple[tuple[str, str], ...]:
    """What an entry holds beside its main figure and the rows below it."""
    return tuple(
        (" / ".join(_NOTES.get(part, words(part)) for part in (name, *path)), _figure(name, leaf))
        for name, value in entry.items()
        if name not in (main, *_IN_ROW) and not (isinstance(value, Mapping) and scores({name: value}))
        for path, leaf in leaves(value)
    )


def _figure(name: str, value: Any) -> str:
    return percent(value) if _is_fraction(value) else shown(name, value)


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and -1 <= value <= 1


def lower_is_better(name: str) -> bool:
    """Whether a smaller figure of this name is the better one."""
    return any(part in name for part in _LOWER)


# -- ablations ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AblationCell:
    """Mean and spread as text; `mark` is "best", "close" (within one spread of the best) or ""."""

    mean: str
    spread: str
    mark: str


def ablation_table(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[str, bool]], list[tuple[str, Any, list[AblationCell]]]]:
    """Columns as (name, lower is better) and rows as (name, seeds, cells)."""
    keys = list(dict.fromkeys(key for row in rows for key in row.get("metrics", {})))
    columns: dict[str, list[AblationCell]] = {}
    for key in keys:
        pairs = [_pair(row.get("metrics", {}).get(key)) for row in rows]
        sign = 1 if lower_is_better(key) else -1
        known = [pair for pair in pairs if pair]
        best = min(known, key=lambda pair: sign * pair[0]) if known else None
        columns[key] = [_ablation_cell(key, pair, best, sign) for pair in pairs]
    body = [
        (str(row.get("name", "")), row.get("seeds", ""), [columns[key][at] for key in keys])
        for at, row in enumerate(rows)
    ]
    return [(words(key).replace("/", ", "), lower_is_better(key)) for key in keys], body


def _pair(value: Any) -> tuple[float, float | None] | None:
    items = value if isinstance(value, list) else [value]
    mean = finite(items[0]) if items else None
    return None if mean is None else (mean, finite(items[1]) if len(items) > 1 else None)


def _ablation_cell(
    key: str, pair: tuple[float, float | None] | None, best: tuple[float, float | None] | None, sign: int
) -> AblationCell:
    if pair is None or best is None:
        return AblationCell("-", "", "")
    share = any(part in key for part in SHARES) and abs(pair[0]) <= 1 and not key.startswith("loss")
    mean = f"{100 * pair[0]:.1f}" if share else f"{pair[0]:.3f}"
    spread = "" if pair[1] is None else f"{100 * pair[1]:.1f}" if share else f"{pair[1]:.3f}"
    reach = max(best[1] or 0.0, pair[1] or 0.0)
    mark = "best" if pair == best else "close" if sign * (pair[0] - best[0]) <= reach else ""
    return AblationCell(mean + (" %" if share else ""), spread, mark)
