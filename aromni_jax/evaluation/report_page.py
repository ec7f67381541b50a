"""What each part of the report shows: the template's variables, made from a run's figures and samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aromni_jax.decoding.grammar import State
from aromni_jax.evaluation import report_figures as figures
from aromni_jax.evaluation import report_scores
from aromni_jax.evaluation.report_charts import number
from aromni_jax.evaluation.report_run import Course
from aromni_jax.evaluation.report_samples import Sample
from aromni_jax.vocabulary import Modality

_ALIASES = {
    "speech_to_text": "asr",
    "text_to_speech": "tts",
    "image_caption": "caption",
    "image_to_text": "caption",
    "text_to_image": "t2i",
}
_PACKING = {
    "packed": "packed: whole examples fitted into rows",
    "padded_to_longest": "one example a row, padded to the longest of its batch",
    "padded_to_max": "one example a row, padded to the longest of all",
}
_STATES = {  # no token is chosen in DONE
    State.TEXT: "may write text, open speech or a picture, or stop",
    State.TRANSCRIPT: "writes down what it heard",
    State.SPEECH: "speech codes, or close",
    State.IMAGE: "picture codes, counted, then close",
}


def page(
    metrics: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    left_out: int,
    ablations: Mapping[str, Any],
    course: Course,
) -> dict[str, Any]:
    """Variables of `report.html`, but for its style and script."""
    kept = figures.Leaves(metrics)
    kept.take("created")
    kept.take("vocabulary")
    held_out = kept.mapping("held_out")
    falls = held_out.pop("loss_falls") if isinstance(held_out.get("loss_falls"), Mapping) else {}
    by_task = {key: report_scores.scores({key: entry}) for key, entry in held_out.items()}
    rows = [row for group in by_task.values() for row in group]
    data = kept.mapping("data")
    packing = data.pop("packing") if isinstance(data.get("packing"), Mapping) else {}
    shown = {
        "scores": rows,
        "bounds_met": [row.met for row in rows if row.met is not None],
        "falls": falls,
        "held_out_rest": figures.table_of({key: held_out[key] for key, group in by_task.items() if not group}),
        "cards": _cards(kept, lines, rows, course),
        "timing": _timing(kept),
        "groups": _groups(samples, {key: group[0] for key, group in by_task.items() if group}),
        "left_out": left_out,
        "samples_note": kept.take("samples", "selection") or "",
        "losses": figures.loss_curves(lines),
        "task_losses": figures.task_curves(lines),
        "speed_curves": figures.speed_curves(lines),
        "curves": figures.other_curves(lines),
        "model": _section(kept.mapping("model"), "by_group"),
        "throughput": _throughput(packing, kept.take("throughput"), lines),
        "decoding": _section(kept.mapping("decoding")),
        "data": _section(data, "tokens_by_modality"),
        "training": _section(kept.mapping("training")),
        "ablations": _ablations(ablations),
        "environment": [(name, figures.shown(name, value)) for name, value in kept.mapping("environment").items()],
        "recipe": json.dumps(recipe, indent=2) if (recipe := kept.take("recipe")) else "",
        "reproduce": _commands(kept),
        "modalities": [kind.name.lower() for kind in Modality],
        "states": [(state.name.lower(), meaning) for state, meaning in _STATES.items()],
    }
    return shown | {"rest": kept.rest()}


def _cards(
    kept: figures.Leaves, lines: Sequence[Mapping[str, Any]], rows: Sequence[report_scores.Score], course: Course
) -> list[Any]:
    """(label, value, one line about it, css) of the boxes at the head."""
    cards = []
    verdicts = [row.met for row in rows if row.met is not None]
    if verdicts:
        missed = [row.title.lower() for row in rows if row.met is False]
        note = f"missed: {', '.join(missed)}" if missed else "on items never seen in training"
        met = f"{len(verdicts) - len(missed)} of {len(verdicts)}"
        cards.append(("bounds met", met, note, "bad" if missed else "good"))
    if (size := kept.number("model", "parameters")) is not None:
        cards.append(("parameters", number(size), "numbers that training adjusts", ""))
    if course.done:
        left = course.planned is not None and course.done < course.planned
        note = f"of {course.planned:,}: not finished" if left else "one update of all parameters each"
        cards.append(("training steps", f"{course.done:,}", note, ""))
    if (loss := figures.newest(lines, "eval", "loss")) is not None:
        cards.append(("held-out loss", number(loss), "as it is trained, on answers that training never saw", ""))
    if (seconds := kept.number("timing", "train")) is not None:
        cards.append(("training time", figures.duration(seconds), "wall clock", ""))
    if (rate := figures.typical(lines, "useful_tokens_per_second")) is not None:
        cards.append(("useful tokens / s", number(rate), "median over the run, padding not counted", ""))
    if (share := figures.typical(lines, "mfu_causal_bf16")) is not None:
        cards.append(("MFU", figures.percent(share), "of the chips' bf16 peak, causal attention counted", ""))
    if course.goodput is not None:
        cards.append(("goodput", figures.percent(course.goodput), "of all time went into steps", ""))
    if len(course.starts) > 1:
        cards.append(("restarts", f"{len(course.starts) - 1}", "it went on from a checkpoint", ""))
    if course.skipped:
        cards.append(("skipped steps", f"{course.skipped:,}", "loss or gradient was not finite", "bad"))
    return cards


def _timing(kept: figures.Leaves) -> dict[str, Any]:
    """Phases as a stacked bar; `total` is the sum unless the run says it."""
    timing = kept.mapping("timing")
    phases = {k: v for k, v in timing.items() if figures.finite(v) is not None and k not in ("total", "bound", "limit")}
    if not phases:
        return {}
    bar, parts = figures.parts_of(phases, figures.duration)
    total = figures.finite(timing.get("total")) or sum(float(v) for v in phases.values())
    bound = figures.finite(timing.get("bound") or timing.get("limit"))
    other = {k: v for k, v in timing.items() if k not in phases and k not in ("total", "bound", "limit")}
    return {
        "bar": bar,
        "parts": parts,
        "total": figures.duration(total),
        "bound": bound and figures.duration(bound),
        "met": bound is None or total <= bound,
        "rest": figures.table_of(other),
    }


def _groups(samples: Sequence[Sample], by_task: Mapping[str, report_scores.Score]) -> list[dict[str, Any]]:
    """Samples by task, in the order of the held-out table, tasks without a known name last."""
    tasks = dict.fromkeys(_ALIASES.get(sample.task, sample.task) for sample in samples)
    order = [key for key in report_scores.SCORED if key in tasks] + [
        key for key in tasks if key not in report_scores.SCORED
    ]
    groups = []
    for key in order:
        title, explain = report_scores.SCORED.get(key, (figures.words(key), ""))
        chosen = [sample for sample in samples if _ALIASES.get(sample.task, sample.task) == key]
        judged = [sample.correct for sample in chosen if sample.correct is not None]
        groups.append(
            {
                "key": key,
                "title": title,
                "explain": explain,
                "samples": chosen,
                "right": sum(judged),
                "judged": len(judged),
                "score": by_task.get(key),
                "clocks": [figures.table_of(sample.clocks) for sample in chosen],
            }
        )
    return groups


def _throughput(packing: Mapping[str, Any], compared: Any, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = {words: packing[key] for key, words in _PACKING.items() if figures.finite(packing.get(key)) is not None}
    rates = {
        name: rate
        for key, name in (
            ("useful_tokens_per_second", "real tokens a second"),
            ("tokens_per_second", "places of the rows a second, padding included"),
        )
        if (rate := figures.typical(lines, key)) is not None
    }
    note = ""
    if isinstance(compared, Mapping) and "rows" in compared:
        note, compared = str(compared.get("note") or ""), compared["rows"]
    return {
        "rates": figures.bars_of(rates),
        "packing": figures.bars_of(known, figures.percent, longest=1.0),
        "rest": figures.table_of({k: v for k, v in packing.items() if _PACKING.get(k) not in known}),
        "table": _records(compared),
        "note": note,
    }


def _records(value: Any) -> dict[str, Any]:
    """A list of objects as a table with a column per key; anything else as names and values."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        keys = list(dict.fromkeys(key for item in value for key in item))
        body = [[figures.shown(key, item.get(key)) for key in keys] for item in value]
        return {"head": [figures.words(key) for key in keys], "body": body}
    return {
        "head": [],
        "body": figures.table_of(value if isinstance(value, Mapping) else {"rows": value} if value else {}),
    }


def _section(values: dict[str, Any], whole: str = "") -> dict[str, Any]:
    """Single values as a table, objects of numbers as bars (`whole` as a stacked bar), the rest as a list."""
    stacked = values.pop(whole) if figures.is_counts(values.get(whole)) else {}
    bar, parts = figures.parts_of(stacked)
    single = {k: v for k, v in values.items() if not isinstance(v, (Mapping, list))}
    bars = {figures.words(k).capitalize(): figures.bars_of(v) for k, v in values.items() if figures.is_counts(v)}
    other = {k: v for k, v in values.items() if k not in single and not figures.is_counts(v)}
    table = figures.table_of(single)
    return {"table": table, "bars": bars, "rest": figures.table_of(other), "bar": bar, "parts": parts}


def _ablations(ablations: Mapping[str, Any]) -> dict[str, Any]:
    given = ablations.get("rows")
    given = [row for row in given if isinstance(row, Mapping)] if isinstance(given, list) else []
    rows = [{**row, "metrics": figures.mapping(row.get("metrics"))} for row in given]
    if not rows:
        return {}
    head, body = report_scores.ablation_table(rows)
    budget = ablations.get("budget")
    budget = figures.table_of(budget) if isinstance(budget, Mapping) else [("budget", str(budget))] if budget else []
    return {"head": head, "body": body, "budget": budget}


def _commands(kept: figures.Leaves) -> list[str]:
    given = kept.take("reproduce")
    train = "aromni train --config FILE --run-dir DIR    # with the recipe below; again to go on"
    commands = given if isinstance(given, list) else [given or train]
    return [str(command) for command in commands]
