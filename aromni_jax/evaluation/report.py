"""The report of a run: one HTML file that holds everything and fetches nothing."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from aromni_jax.codecs.media import write_atomic
from aromni_jax.errors import UserError
from aromni_jax.evaluation import report_html
from aromni_jax.evaluation.report_files import read_lines, read_list, read_object
from aromni_jax.evaluation.standards import STANDARDS
from aromni_jax.vocabulary import JointVocabulary
from aromni_jax.worlds import WORLDS

MAX_BYTES = 8_000_000
_OBJECTS = ("config.json", "metrics.json")
_LOGS = ("metrics.jsonl", "history.jsonl")
_HELD_OUT = "Every item here was kept out of training."


def write_report(run_dir: str | Path) -> Path:
    """Write `run_dir/report.html` from the files of a run, finished or not; returns its path.

    Reads what there is of `config.json`, `history.jsonl`, `metrics.jsonl`, `samples/STEP/` (of `aromni train`) and
    `metrics.json`, `samples/samples.json`, `ablations.json` (of `aromni demo`; else the ablations shipped with the
    world). The page is at most MAX_BYTES long: samples that do not fit are counted in it, not shown. Raises UserError:
    no run there, a broken file, named, or jinja2 is not installed.
    """
    template = report_html.renderer("report.html")
    from aromni_jax.evaluation import report_page, report_run, report_samples

    run_dir = Path(run_dir)
    judged = (run_dir / "metrics.json").exists()
    if not judged and not any((run_dir / name).exists() for name in ("config.json", "metrics.jsonl")):
        raise UserError(f"{run_dir} is no run folder: give the --run-dir of `aromni train` or `aromni demo`")
    config, metrics = (read_object(run_dir / name) if (run_dir / name).exists() else {} for name in _OBJECTS)
    lines, history = (read_lines(run_dir / name) if (run_dir / name).exists() else [] for name in _LOGS)
    metrics = {**report_run.facts(history, config, run_dir / "metrics.jsonl"), **metrics}
    samples = report_samples.read_samples(
        run_dir / "samples", read_list(run_dir / "samples" / "samples.json"), _vocabulary(metrics, run_dir)
    )
    world = _world(metrics)
    ablations = _ablations(run_dir, world if judged else "")
    course = report_run.course(lines, history, config)
    prompts, prompts_left_out = report_run.prompts(run_dir / "samples", MAX_BYTES // 2)

    def render(kept: list[report_samples.Sample]) -> bytes:
        page = report_page.page(metrics, lines, kept, len(samples) - len(kept), ablations, course)
        page |= {"course": course, "prompts": prompts, "prompts_left_out": prompts_left_out, "judged": judged}
        page["held_out_note"] = STANDARDS[world].held_out if world else _HELD_OUT
        return template(page | {"run": run_dir.resolve().name, "created": _created(metrics)})

    html = render(samples)
    if len(html) > MAX_BYTES:
        media = sum(sample.media_bytes for sample in samples)
        html = render(report_samples.within_budget(samples, MAX_BYTES - (len(html) - media)))
    if len(html) > MAX_BYTES:
        raise UserError(
            f"{run_dir}: the report would be {len(html) / 1e6:.1f} MB without any media, more than "
            f"{MAX_BYTES / 1e6:.0f}; make metrics.json or the list of samples shorter"
        )
    path = run_dir / "report.html"
    write_atomic(path, lambda temporary: temporary.write_bytes(html))
    return path


def _created(metrics: Mapping[str, Any]) -> str:
    text = str(metrics.get("created") or "")
    try:
        return f"{datetime.fromisoformat(text):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return text


# -- of the run -----------------------------------------------------------------------------------------


def _vocabulary(metrics: Mapping[str, Any], run_dir: Path) -> JointVocabulary | None:
    """The layout under the key "vocabulary" (`JointVocabulary.to_dict`), which gives names to token ids."""
    if "vocabulary" not in metrics:
        return None
    try:
        return JointVocabulary.from_dict(metrics["vocabulary"])
    except (UserError, TypeError) as error:
        raise UserError(f"{run_dir / 'metrics.json'}, vocabulary: {error}") from None


def _world(metrics: Mapping[str, Any]) -> str:
    """Name of the shipped world of the run's recipe; "" if it is of none."""
    recipe = metrics.get("recipe")
    name = recipe.get("world") if isinstance(recipe, Mapping) else None
    return name if name in WORLDS else ""


def _ablations(run_dir: Path, world: str) -> dict[str, Any]:
    """Of the run, or those shipped with its world; {} without either."""
    own = run_dir / "ablations.json"
    if own.exists():
        return read_object(own)
    shipped = importlib.resources.files("aromni_jax") / f"worlds/{world}/ablations.json"
    return json.loads(shipped.read_text(encoding="utf-8")) if world and shipped.is_file() else {}
