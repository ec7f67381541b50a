"""Speed of the engine: beside `generate` of transformers, beside the bare model, and a batch beside one by one.

Random weights, the same for all sides, which take turns in every repeat; greedy tokens of engine and transformers must
be equal before anything is timed (in float32). By default the small model of the reference's own measurement, on this
CPU; `--models ar-omni` is the 7B in bfloat16, for an accelerator with 48 GB.

    python benchmarks/decode_torch.py --out benchmarks/results/decode_torch.json
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import pathlib
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import BUSY, CpuUse, hardware, positive, spread, threads, versions
from output import Say, clocked, write

from aromni_jax.config import ModelConfig
from aromni_jax.decoding import Engine, Guidance, Policy, Request, State
from aromni_jax.decoding.selection import first_best
from aromni_jax.errors import UserError
from aromni_jax.model import (
    PRESETS,
    KVCache,
    forward,
    init_params,
    logits,
    parameter_counts,
    split_layers,
)
from aromni_jax.vocabulary import OFFICIAL_SIZE, JointVocabulary

PACKAGES = ("aromni_jax", "jax", "jaxlib", "numpy", "torch", "transformers")
_SMALL = ModelConfig(
    vocab_size=4096, dim=256, layers=6, heads=8, kv_heads=8, head_dim=32, ffn_dim=704, attention="blocked"
)
MODELS = {
    "small": _SMALL,
    "wide": dataclasses.replace(_SMALL, dim=1024, head_dim=128, ffn_dim=2816),
    "ar-omni": dataclasses.replace(PRESETS["ar-omni"], perceptual_dim=0),
}
CHUNK = 32
_WARM = 1  # untimed rounds: compiling, caches
_SAMPLED = Policy(temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.1)


def random_model(config: ModelConfig) -> Any:
    """`params` (layers apart), `config` and `vocabulary`. Text pieces alone are likely: no answer ends early."""
    vocabulary = JointVocabulary.aromni()
    if config.vocab_size != OFFICIAL_SIZE:
        spans = {"image_codes": 1024, "image_tokens": 64, "speech_codes": 256}
        others = JointVocabulary.compact(text_pieces=0, **spans).size
        vocabulary = JointVocabulary.compact(text_pieces=config.vocab_size - others, **spans)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.PRNGKey(0))
    text_v = vocabulary.text.mask(np.arange(vocabulary.size))
    params["head"]["kernel"] = jnp.where(text_v[None], params["head"]["kernel"], 0)
    return types.SimpleNamespace(params=split_layers(params), config=config, vocabulary=vocabulary)


def prompts(vocabulary: JointVocabulary, batch: int, tokens: int) -> list[list[int]]:
    """Random text."""
    rng, text = np.random.default_rng(0), vocabulary.text
    return [[vocabulary.bos, *rng.integers(text.start, text.stop, tokens - 1).tolist()] for _ in range(batch)]


def in_turns(jobs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every job, repeat by repeat; the order changes from one to the next."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(-_WARM, repeats):
        for name in jobs if repeat % 2 else reversed(jobs):
            started = time.perf_counter()
            jobs[name]()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def beside_transformers(model: Any, batch: int, prompt: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Time to the first token and decoding speed of both; UserError when their tokens differ."""
    try:
        from chameleon_torch import Transformers
    except ImportError:
        raise UserError("the peer needs PyTorch and transformers: pip install torch transformers") from None
    asked = prompts(model.vocabulary, batch, prompt)
    engines = {1: Engine(model, chunk=1), tokens: Engine(model, chunk=CHUNK)}

    def ours(count: int) -> list[list[int]]:
        requests = [
            Request(prompt_tokens=tokens, max_new_tokens=count, allowed=frozenset({State.TEXT})) for tokens in asked
        ]
        return [result.tokens.tolist() for result in engines[count].generate(requests)]

    peer = Transformers(model.params, model.config, model.vocabulary, jax.default_backend(), threads())
    same = [a == b for row, other in zip(ours(tokens), peer.generate(asked, tokens), strict=True)
            for a, b in zip(row[:-1], other[:-1], strict=True)]  # fmt: skip
    if model.config.compute_dtype == "float32" and not all(same):
        raise UserError(f"{same.count(False)} of {len(same)} tokens differ from those of transformers; nothing timed")
    seconds = in_turns(
        {
            "ours_first": lambda: ours(1),
            "peer_first": lambda: peer.generate(asked, 1),
            "ours": lambda: ours(tokens),
            "peer": lambda: peer.generate(asked, tokens),
        },
        repeats,
    )
    speeds = {
        side: [batch * (tokens - 1) / (whole - first) for whole, first in zip(seconds[side], first_s, strict=True)]
        for side, first_s in (("ours", seconds["ours_first"]), ("peer", seconds["peer_first"]))
    }
    return {
        "batch": batch, "prompt": prompt, "tokens": tokens, "same_tokens": sum(same) / len(same),
        "ours_first": spread(seconds["ours_first"]), "peer_first": spread(seconds["peer_first"]),
        "ours": spread(speeds["ours"]), "peer": spread(speeds["peer"]),
        "ratio": spread([a / b for a, b in zip(speeds["ours"], speeds["peer"], strict=True)]),
    }  # fmt: skip


def mixed_requests(vocabulary: JointVocabulary) -> list[Request]:
    """Eight of mixed tasks and policies, about as long: text, speech, pictures with guidance, prompts of any length."""
    sampled = dict.fromkeys((State.TEXT, State.SPEECH, State.IMAGE), _SAMPLED)
    text, speech = ({"first": state, "allowed": frozenset({state})} for state in (State.TEXT, State.SPEECH))
    picture = {"first": State.IMAGE, "policies": sampled}
    how: list[dict[str, Any]] = [
        text, speech, text | {"policies": sampled}, speech | {"policies": sampled},
        picture, picture | {"guidance": Guidance(3.0, 1.2)}, text | {"policies": sampled}, text,
    ]  # fmt: skip
    asked = prompts(vocabulary, len(how), 128)
    limit = max(160, vocabulary.image_tokens + 4)
    return [
        Request(prompt_tokens=tokens[: 40 + 11 * n], seed=n, max_new_tokens=limit, id=str(n), **more)
        for n, (tokens, more) in enumerate(zip(asked, how, strict=True))
    ]


def mixed_batch(model: Any, repeats: int) -> dict[str, Any]:
    """Eight requests of mixed tasks at once and one after the other; their tokens must be equal in float32."""
    engine, requests = Engine(model, chunk=CHUNK), mixed_requests(model.vocabulary)

    def together() -> list[list[int]]:
        return [result.tokens.tolist() for result in engine.generate(requests)]

    def apart() -> list[list[int]]:
        return [engine.generate([request])[0].tokens.tolist() for request in requests]

    batched = together()
    if model.config.compute_dtype == "float32" and batched != apart():
        raise UserError("a batch gives other tokens than its requests one by one; nothing was timed")
    seconds = in_turns({"together": together, "apart": apart}, repeats)
    return {
        "tokens": sum(map(len, batched)),
        "together": spread(seconds["together"]), "apart": spread(seconds["apart"]),
        "ratio": spread([b / a for a, b in zip(seconds["together"], seconds["apart"], strict=True)]),
    }  # fmt: skip


def overhead(model: Any, repeats: int, chunks: int = 4) -> dict[str, Any]:
    """Speed of the engine with everything on, as a share of that of a loop that only runs the model.

    That loop has no more slots in its cache than it fills, and takes the best token in the engine's way.

    Four requests, half of them pictures with guidance, all sampled with a penalty: six rows. The engine's time is that
    of `chunks` chunks: of a run that is so much longer than another.
    """
    v, prompt = model.vocabulary, 128
    asked = prompts(v, 4, prompt)

    def requests(count: int) -> list[Request]:
        policies = dict.fromkeys((State.TEXT, State.IMAGE), _SAMPLED)
        drawn = {"first": State.IMAGE, "guidance": Guidance(3.0, 1.2)}
        return [
            Request(prompt_tokens=tokens, seed=n, max_new_tokens=count, policies=policies, max_spans=1, **drawn)
            if n % 2
            else Request(prompt_tokens=tokens, seed=n, max_new_tokens=count, policies=policies, max_spans=0)
            for n, tokens in enumerate(asked)
        ]

    engine, short = Engine(model, chunk=CHUNK), CHUNK * -(-(v.image_tokens + 4) // CHUNK)
    long = short + chunks * CHUNK
    rows, config = 6, model.config

    @functools.partial(jax.jit, donate_argnums=1)
    def bare(params: Any, carry: tuple[KVCache, jax.Array]) -> tuple[KVCache, jax.Array]:
        def step(carry: tuple[KVCache, jax.Array], _: None) -> tuple[tuple[KVCache, jax.Array], None]:
            cache, tokens_r = carry
            hidden_r1d, filled = forward(params, config, tokens_r[:, None], cache=cache)
            assert filled is not None
            return (filled, first_best(logits(params, config, hidden_r1d[:, 0]))), None

        return jax.lax.scan(step, carry, None, length=CHUNK)[0]

    state = (KVCache.create(config, rows, prompt + long), jnp.full((rows,), v.text.start, jnp.int32))

    def run_bare() -> None:
        nonlocal state
        state = (dataclasses.replace(state[0], index=jnp.asarray(prompt + short, jnp.int32)), state[1])
        for _ in range(chunks):
            state = bare(model.params, state)
        state[1].block_until_ready()

    def answer(count: int) -> None:
        got = [len(result.tokens) for result in engine.generate(requests(count))]
        if got != [count] * len(got):
            raise UserError(f"answers ended early: {got} of {count} tokens; nothing was timed")

    seconds = in_turns({"short": lambda: answer(short), "long": lambda: answer(long), "bare": run_bare}, repeats)
    ours = [b - a for a, b in zip(seconds["short"], seconds["long"], strict=True)]
    return {
        "rows": rows, "steps": chunks * CHUNK,
        "engine_ms": spread([1000 * s / (chunks * CHUNK) for s in ours]),
        "bare_ms": spread([1000 * s / (chunks * CHUNK) for s in seconds["bare"]]),
        "share": spread([b / a for a, b in zip(ours, seconds["bare"], strict=True)]),
    }  # fmt: skip


def bandwidth() -> float:
    """Bytes/s at which the default device reads 1 GB of its memory, the best of ten."""
    x = jnp.ones((16, 1 << 24), jnp.float32)
    read = jax.jit(lambda x: jnp.max(x, axis=1))
    read(x).block_until_ready()
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        read(x).block_until_ready()
        best = max(best, x.nbytes / (time.perf_counter() - started))
    return best


def step_bytes(config: ModelConfig, batch: int, context: float) -> float:
    """The least that a decoding step reads: every weight but the embedding once, and the keys and values so far."""
    counts = parameter_counts(config)
    width = jnp.dtype(config.param_dtype).itemsize
    weights = (counts["total"] - counts["embedder"] - counts.get("perceptual", 0)) * width
    return weights + batch * context * KVCache.create(config, 1, 1).nbytes


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    cpu = CpuUse()
    result: dict[str, Any] = {"models": {}}
    reads = bandwidth()
    for name in args.models:
        model = random_model(MODELS[name])
        part: dict[str, Any] = {"config": dataclasses.asdict(model.config), "peer": []}
        for batch in args.batches if name == args.models[0] else []:
            row = beside_transformers(model, batch, args.prompt, args.tokens, args.repeats)
            context = args.prompt + args.tokens / 2
            row["floor"] = batch * reads / step_bytes(model.config, batch, context)
            part["peer"].append(row)
            say(f"{name}, batch {batch}: {row['ours']['median']:.0f} tokens/s, {row['ratio']['median']:.2f} times")
        if name == args.models[0]:
            part["mixed"] = mixed_batch(model, args.repeats)
            say(f"{name}, mixed batch of eight: {part['mixed']['ratio']['median']:.2f} times one by one")
        part["overhead"] = overhead(model, args.repeats)
        say(f"{name}, share of the bare loop: {part['overhead']['share']['median']:.1%}")
        result["models"][name] = part
        del model
    return result | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware() | {"device": str(jax.devices()[0].device_kind), "bytes_per_second": reads},
        "cpu_share_of_others": cpu.share_of_others(),
        "versions": versions(PACKAGES),
        "repeats": args.repeats,
    }


def markdown(result: dict[str, Any]) -> str:
    """Three tables, with what has to be known to read them."""

    def cell(value: dict[str, Any], form: str = "{:.2f}", scale: float = 1.0) -> str:
        median, low, high = (form.format(scale * value[key]) for key in ("median", "min", "max"))
        return f"{median} ({low}..{high})"

    models = result["models"]
    lines = [
        "Decoding, tokens/s of all rows, without the time to the first token:",
        "",
        "| model | batch | aromni_jax | transformers | ratio | share of what memory allows |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in models.items():
        for row in part["peer"]:
            share = f"{row['ours']['median'] / row['floor']:.0%} of {row['floor']:.0f}"
            ours, peer = cell(row["ours"], "{:.0f}"), cell(row["peer"], "{:.0f}")
            lines.append(f"| {name} | {row['batch']} | {ours} | {peer} | {cell(row['ratio'])} | {share} |")
    lines += ["", "Time to the first token, ms:", "", "| model | batch | prompt | aromni_jax | transformers |"]
    lines += ["|---|---|---|---|---|"]
    for name, part in models.items():
        for row in part["peer"]:
            firsts = " | ".join(cell(row[f"{side}_first"], "{:.1f}", 1000) for side in ("ours", "peer"))
            lines.append(f"| {name} | {row['batch']} | {row['prompt']} | {firsts} |")
    lines += [
        "",
        "The engine beside itself:",
        "",
        "| model | what | seconds or ms per step | ratio |",
        "|---|---|---|---|",
    ]
    for name, part in models.items():
        if mixed := part.get("mixed"):
            figures = f"{cell(mixed['together'])} s, {cell(mixed['apart'])} s"
            what = "eight requests of mixed tasks at once, and one by one"
            lines.append(f"| {name} | {what} | {figures} | {cell(mixed['ratio'])} |")
        over = part["overhead"]
        figures = f"{cell(over['engine_ms'])} ms, {cell(over['bare_ms'])} ms"
        what = f"all of the engine, and the bare model, {over['rows']} rows"
        lines.append(f"| {name} | {what} | {figures} | {cell(over['share'])} |")
    machine, others = result["hardware"], result["cpu_share_of_others"]
    lines += [
        "",
        f"Median (lowest..highest) of {result['repeats']} repeats, ratios repeat by repeat. {machine['device']},",
        f"{machine['processor']}, {machine['threads']} threads; it reads {machine['bytes_per_second'] / 1e9:.0f} GB/s;",
        f"{result['date']}; {', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
    ]
    for name, part in models.items():
        config = part["config"]
        lines.append(f"{name}: {config['layers']} layers of {config['dim']}, {config['compute_dtype']}.")
    if others is not None:
        lines.append(f"Meanwhile other programs used {others:.1%} of the CPU.")
        if others > BUSY:
            lines += ["", "**The machine was busy: these figures are not to be quoted.**"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 0, or 1 with one line of reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.json", help="a .md goes beside it")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=["small", "wide"], help="the first is set beside the peer"
    )
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8], metavar="N", help="rows (1 8)")
    parser.add_argument("--prompt", type=positive, default=256, metavar="N", help="tokens (256)")
    parser.add_argument("--tokens", type=positive, default=256, metavar="N", help="new ones (256)")
    parser.add_argument("--repeats", type=positive, default=7, metavar="N", help="turns of each side (7)")
    args = parser.parse_args()
    say = clocked()
    return write("decode_torch", args.out, "Decoding beside transformers", lambda: run(args, say), markdown)


if __name__ == "__main__":
    sys.exit(main())
