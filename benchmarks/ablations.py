"""Ablations of the numbers recipe at one small budget: what each part of the recipe buys, over seeds.

    python benchmarks/ablations.py --data runs/demo/data --out aromni_jax/worlds/numbers/ablations.json

Every variant is trained with the same data, steps and seeds. Scores are held-out: losses per modality, captions
(exact), transcripts (word error rate of the model's own text), and the digits that the image judge reads in pictures.
A finished (variant, seed) pair is kept in the output and not trained again, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import statistics
import tempfile
from typing import Any

import numpy as np

from aromni_jax import store
from aromni_jax.cli.train import codebook
from aromni_jax.config import load_config
from aromni_jax.evaluation.judges import DigitImageJudge
from aromni_jax.evaluation.scores import exact_match, word_error_rate
from aromni_jax.tasks import Assistant
from aromni_jax.training import train
from aromni_jax.worlds.numbers import NumbersWorld

VARIANTS = {
    "the recipe (weighted NTP, perceptual loss predicting, swin)": [],
    "plain NTP: every token weighs 1": [
        "loss.prompt_weight=1.0",
        'loss.response_weights={"image_caption": 1.0, "speech_to_text": 1.0}',
    ],
    "reference weights: answers of caption and ASR 2, all else 1": ["loss.prompt_weight=1.0"],
    "no perceptual loss": ["loss.perceptual_weight=0.0"],
    "perceptual loss at the same position": ["loss.align=same_position"],
    "pre-norm": ["model.norm_order=pre"],
}
ITEMS = 100


def main() -> None:
    """Train what is missing, score it, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder made by `aromni prepare numbers`")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    result = store.read_json(args.out) if args.out.exists() else {"runs": []}
    result["budget"] = {"config": "configs/numbers.py:demo", "steps": args.steps, "seeds": args.seeds, "items": ITEMS}
    for seed in range(args.seeds):
        for name, overrides in VARIANTS.items():
            if any((run["name"], run["seed"], run["steps"]) == (name, seed, args.steps) for run in result["runs"]):
                continue
            print(f"== {name}, seed {seed}", flush=True)
            metrics = _run([*overrides, f'data.path="{args.data}"', f"train.steps={args.steps}"], seed)
            result["runs"].append({"name": name, "seed": seed, "steps": args.steps, "metrics": metrics})
            result["rows"] = _rows(result["runs"], args.steps)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            store.write_json(args.out, result)
    print(_markdown(result["rows"]))


def _run(overrides: list[str], seed: int) -> dict[str, float]:
    config = load_config(
        "configs/numbers.py:demo",
        [*overrides, f"train.seed={seed}", f"data.seed={seed}", "train.eval_every=1000000"],
    )
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        held_out = train(config, folder, codebook_kc=codebook(config), say=lambda line: None).held_out
        metrics = {name: held_out[f"loss/{name}"] for name in ("text", "image", "speech")}
        return {f"loss/{name}": value for name, value in metrics.items()} | _scores(
            Assistant.load(folder, max_batch=64)
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _scores(assistant: Assistant) -> dict[str, float]:
    world, rng, judge = NumbersWorld.load(), np.random.default_rng(0), DigitImageJudge()
    held_out = world.strings("test")
    strings = [held_out[number % len(held_out)] for number in range(ITEMS)]
    texts = [world.text(string) for string in strings]
    heard = assistant.transcribe([world.utterance(string, rng, split="test") for string in strings])
    seen = assistant.describe(np.stack([world.picture(string, rng, split="test") for string in strings]))
    drawn = [judge.read(np.asarray(picture.convert("L"))) for picture in assistant.draw(texts)]
    return {
        "asr_wer": word_error_rate(texts, heard).value,
        "caption_exact": exact_match(texts, seen).value,
        "t2i_digits": float(
            np.mean([a == b for want, got in zip(strings, drawn, strict=True) for a, b in zip(want, got, strict=True)])
        ),
    }


def _rows(runs: list[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Mean and spread (standard deviation over seeds) per variant."""
    rows = []
    for name in VARIANTS:
        found = [run["metrics"] for run in runs if run["name"] == name and run["steps"] == steps]
        if found:
            columns = {key: [metrics[key] for metrics in found] for key in found[0]}
            spread = {k: [statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0] for k, v in columns.items()}
            rows.append({"name": name, "seeds": len(found), "metrics": spread})
    return rows


def _markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["metrics"])
    lines = ["| variant | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in row["metrics"].values()]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
