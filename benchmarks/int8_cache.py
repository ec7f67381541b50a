"""What a key/value cache in bfloat16 or int8 changes in a model's answers, against one in float32.

Held-out prompts of the model's own world are answered greedily. The logits are then compared along the float32 answer,
so that one changed token does not count again in all that follow it; the tokens along each cache's own answer.

    python benchmarks/int8_cache.py --out benchmarks/results/int8_cache.json
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import hardware, positive, versions

from aromni_jax import store
from aromni_jax.convert import load_model
from aromni_jax.decoding import Engine, Request
from aromni_jax.errors import UserError
from aromni_jax.model import CACHE_DTYPES, KVCache, forward, logits
from aromni_jax.tasks import Assistant, Options, Part, Text, make_request
from aromni_jax.worlds import World, load_world

TASKS = ("speech_to_text", "text_to_speech", "image_caption", "text_to_image")
PACKAGES = ("aromni_jax", "jax", "jaxlib", "numpy")
SEED = 5


def prompts(assistant: Assistant, world: World, task: str, count: int) -> list[Request]:
    """Greedy requests for `count` held-out items; said and drawn anew where there are fewer, but written only once."""
    rng, strings = np.random.default_rng(SEED), world.strings("test")
    items = list(itertools.islice(itertools.cycle(strings), count))
    parts: Sequence[Part]
    if task == "speech_to_text":
        parts = assistant.hear([world.utterance(item, rng, split="test") for item in items])
    elif task == "image_caption":
        pictures = [world.picture(world.naming(item), rng, split="test") for item in items]
        parts = assistant.look(np.stack(pictures))
    else:
        parts = [Text(world.text(item)) for item in items[: len(strings)]]
    options, vocabulary = Options(), assistant.vocabulary
    return [
        make_request(task, assistant.prompts.prompt(task, [part]), vocabulary, options, n)
        for n, part in enumerate(parts)
    ]


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _log_probabilities(params: Any, tokens_bs: jax.Array, real_bs: jax.Array, *, config: Any, dtype: str) -> Any:
    cache = KVCache.create(config, *tokens_bs.shape, dtype)
    hidden_bsd, _ = forward(params, config, tokens_bs, segment_ids_bs=real_bs, cache=cache)
    scores_bsv = logits(params, config, hidden_bsd)
    return scores_bsv, jax.nn.log_softmax(scores_bsv, axis=-1)


def along(model: Any, requests: Sequence[Request], answers: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    """Cache dtype -> errors of the logits from which the answers' tokens are chosen, against float32."""
    rows = [[*request.prompt_tokens, *answer.tolist()] for request, answer in zip(requests, answers, strict=True)]
    longest = max(map(len, rows))
    tokens_bs, real_bs, chosen_bs = np.zeros((3, len(rows), longest), np.int32)
    for n, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        tokens_bs[n, : len(row)], real_bs[n, : len(row)] = row, 1
        chosen_bs[n, len(row) - len(answer) - 1 : len(row) - 1] = 1
    at = chosen_bs == 1
    scores, logs = {}, {}
    given = model.params, jnp.asarray(tokens_bs), jnp.asarray(real_bs)
    for dtype in CACHE_DTYPES:
        both = _log_probabilities(*given, config=model.config, dtype=dtype)
        scores[dtype], logs[dtype] = (np.asarray(array, np.float64)[at] for array in both)
    exact, exact_log = scores["float32"], logs["float32"]
    spread = float((exact - exact.mean(axis=-1, keepdims=True)).std())
    figures = {}
    for dtype in CACHE_DTYPES[1:]:
        error = scores[dtype] - exact
        kl = (np.exp(exact_log) * (exact_log - logs[dtype])).sum(axis=-1)
        figures[dtype] = {
            "answers": len(rows),
            "positions": len(exact),
            "logit_error_max": float(np.abs(error).max()),
            "logit_error_rms": float(np.sqrt((error**2).mean())),
            "logits_rms": spread,
            "kl_mean": float(kl.mean()),
            "kl_max": float(kl.max()),
            "same_best_token": float((scores[dtype].argmax(-1) == exact.argmax(-1)).mean()),
        }
    return figures


def agreement(ours: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> dict[str, float]:
    """Share of tokens that are the same at the same place, and of answers that are the same throughout."""
    same = sum(int((a[: len(b)] == b[: len(a)]).sum()) for a, b in zip(ours, exact, strict=True))
    return {
        "same_tokens": same / sum(max(len(a), len(b)) for a, b in zip(ours, exact, strict=True)),
        "same_answers": float(np.mean([np.array_equal(a, b) for a, b in zip(ours, exact, strict=True)])),
    }


def bytes_per_token(config: Any) -> dict[str, int]:
    """Of keys, values and scales of all layers, per cache dtype."""
    return {dtype: KVCache.create(config, 1, 1, dtype).nbytes for dtype in CACHE_DTYPES}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All rows of the table."""
    model, assistant = load_model(args.model), Assistant.load(args.model)
    world = load_world(str(model.metadata["world"]))
    engines = {dtype: Engine(model, cache_dtype=dtype) for dtype in CACHE_DTYPES}
    tasks = {}
    for task in TASKS:
        requests = prompts(assistant, world, task, args.items)
        answers = {dtype: [result.tokens for result in engine.generate(requests)] for dtype, engine in engines.items()}
        figures = along(model, requests, answers["float32"])
        for dtype, values in figures.items():
            values.update(agreement(answers[dtype], answers["float32"]))
        tasks[task] = figures
    return {
        "model": args.model,
        "items": args.items,
        "tasks": tasks,
        "bytes_per_token": bytes_per_token(model.config),
        "head_dim": model.config.head_dim,
        "hardware": hardware(),
        "versions": versions(PACKAGES),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def markdown(result: dict[str, Any]) -> str:
    """One line per task and cache dtype."""
    sizes = result["bytes_per_token"]
    lines = [
        "| task (answers, tokens) | cache | logit error, max | RMS (of logits with RMS) | KL, mean (max), nats "
        "| same best token | same tokens of greedy answers | same answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, figures in result["tasks"].items():
        for dtype, row in figures.items():
            lines.append(
                f"| {task} ({row['answers']}, {row['positions']}) | {dtype} | {row['logit_error_max']:.3f} | "
                f"{row['logit_error_rms']:.4f} ({row['logits_rms']:.2f}) | "
                f"{row['kl_mean']:.1e} ({row['kl_max']:.1e}) | "
                f"{row['same_best_token']:.2%} | {row['same_tokens']:.2%} | {row['same_answers']:.1%} |"
            )
    return "\n".join(
        [
            *lines,
            "",
            "Bytes of cache per token, all layers: "
            + ", ".join(f"{dtype} {size}" for dtype, size in sizes.items())
            + f" (heads of {result['head_dim']}; of 128, int8 needs {(128 + 4) / 256:.1%} of bfloat16).",
            "",
            f"{result['model']}, held-out prompts, against a float32 cache, float32 compute; "
            "logits along the float32 answer, tokens along each cache's own; "
            f"{result['hardware']['processor']}, {result['hardware']['threads']} threads; {result['date']}; "
            + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            + ".",
            "",
        ]
    )


def main() -> int:
    """Exit code 0, or 1 with one line of reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.json", help="a .md goes beside it")
    parser.add_argument("--model", default="numbers", help="shipped, or a folder that names its world (numbers)")
    parser.add_argument("--items", type=positive, default=64, help="held-out prompts per task at most (64)")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        result = run(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(args.out, result)
        table = markdown(result)
        store.write_text(args.out.with_suffix(".md"), f"# Caches in bfloat16 and int8\n\n{table}")
    except (UserError, OSError) as error:
        print(f"int8_cache: {error}", file=sys.stderr)
        return 1
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
