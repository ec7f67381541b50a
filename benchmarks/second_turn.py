"""What later turns of dialogs cost: until the first token, with the first turn's cache and read anew; and altogether.

A turn is `--answer` tokens of answer after a history of random text; the next one adds `--new` tokens. Both ways take
turns in every repeat, each after an untimed run that compiles. The tokens they choose must be the same.

Then, with models that have codecs, `--dialogs` dialogs of `--turns` short texts are answered, sound and pictures made,
as by `aromni chat --input`: one after another, each with a session; all at once; and at once with nothing kept.

    python benchmarks/second_turn.py --out benchmarks/results/second_turn.json
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import pathlib
import sys
import time
import types
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
from machine import BUSY, CpuUse, hardware, positive, spread, versions

from aromni_jax import store
from aromni_jax.config import ModelConfig
from aromni_jax.convert import load_model
from aromni_jax.decoding import Engine, Request, State, newcomers, pool
from aromni_jax.errors import UserError
from aromni_jax.model import init_params
from aromni_jax.tasks import Assistant, Options, Text
from aromni_jax.tasks.dialog import Said, Script
from aromni_jax.vocabulary import JointVocabulary

PACKAGES = ("aromni_jax", "jax", "jaxlib", "numpy")


def open_model(name: str) -> Any:
    """ "tiny" (random weights) or a model that `load_model` knows."""
    if name != "tiny":
        return load_model(name)
    vocabulary = JointVocabulary.compact(text_pieces=256, image_codes=64, image_tokens=16, speech_codes=64)
    config = ModelConfig(
        vocab_size=vocabulary.size, dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn_dim=160, max_positions=1024
    )
    params = init_params(config, jax.random.PRNGKey(0))
    return types.SimpleNamespace(params=params, config=config, vocabulary=vocabulary)


def second_turns(model: Any, batch: int, history: int, answer: int, new: int, repeats: int) -> dict[str, Any]:
    """Milliseconds from the request to the first token of a second turn, both ways; one table row."""
    v, rng = model.vocabulary, np.random.default_rng(0)
    engine = Engine(model, chunk=1)

    def words(count: int) -> list[int]:
        return rng.integers(v.text.start, v.text.stop, count).tolist()

    def turn(prompts: Sequence[Sequence[int]], limit: int) -> list[Request]:
        text = frozenset({State.TEXT})
        return [Request(prompt_tokens=p, max_new_tokens=limit, allowed=text, first=State.TEXT) for p in prompts]

    first = turn([[v.bos, *words(history - answer - 1)] for _ in range(batch)], answer)
    said = [words(new) for _ in range(batch)]
    times: dict[str, list[float]] = {"kept": [], "anew": []}
    for repeat in range(repeats + 1):
        session = engine.session()
        answers = [result.tokens.tolist() for result in engine.generate(first, session)]
        # The answer's last token, eos or eom, stands as eom in the history.
        prompts = [
            [*request.prompt_tokens, *tokens[:-1], v.eom, *more]
            for request, tokens, more in zip(first, answers, said, strict=True)
        ]
        results = {"kept": engine.generate(turn(prompts, 2), session), "anew": engine.generate(turn(prompts, 2))}
        if [r.tokens.tolist() for r in results["kept"]] != [r.tokens.tolist() for r in results["anew"]]:
            raise UserError("the two ways chose different tokens")
        for way, got in results.items():
            if repeat:
                times[way].append(1000 * got[0].usage.first_token)
    usage = results["kept"][0].usage
    return {
        "batch": batch,
        "prompt_tokens": usage.prompt_tokens,
        "fed_tokens": usage.fed_tokens,
        **{f"{way}_ms": spread(values) for way, values in times.items()},
        "ratio": spread([anew / kept for kept, anew in zip(times["kept"], times["anew"], strict=True)]),
    }


def whole_dialogs(assistant: Assistant, turns: int, repeats: int, options: Options | None = None) -> dict[str, Any]:
    """Seconds for all turns of as many dialogs as are answered at once, each way; one table row per way."""
    dialogs, words = assistant.max_batch, ("one", "two", "three", "four", "five", "six", "seven")
    texts = [[f"{words[(n + turn) % 7]} {words[(2 * n) % 7]}" for turn in range(turns)] for n in range(dialogs)]
    replies: list[list[Any]] = []

    def keep(number: int, reply: Any) -> None:
        replies[number].append(reply)
        assistant.media(reply)

    def script(number: int) -> Script:
        history: list[int] = []
        for text in texts[number]:
            reply, history = yield Said(history, [Text(text)])
            keep(number, reply)

    def one_by_one() -> None:
        for number in range(dialogs):
            history, session = [], assistant.session()
            for text in texts[number]:
                reply, history = assistant.chat(history, [Text(text)], options=options, session=session)
                keep(number, reply)

    def at_once() -> None:
        assistant.converse((script(number) for number in range(dialogs)), options)

    anew = mock.patch.object(pool, "meet", lambda rows, held: newcomers.meet(rows, []))
    ways: dict[str, tuple[Any, Any]] = {
        "one after another, with sessions": (one_by_one, contextlib.nullcontext()),
        "at once, all read": (at_once, anew),
        "at once": (at_once, contextlib.nullcontext()),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    usages, chosen = {}, []
    for repeat in range(repeats + 1):
        for way, (answer, kept) in ways.items():
            replies = [[] for _ in range(dialogs)]
            start = time.perf_counter()
            with kept:
                answer()
            if repeat:
                seconds[way].append(time.perf_counter() - start)
            usages[way] = [reply.result.usage for dialog in replies for reply in dialog]
            chosen.append([reply.result.tokens.tolist() for dialog in replies for reply in dialog])
            if chosen[-1] != chosen[0]:
                raise UserError(f"{way}: chose other tokens than the first way")
    first = seconds[next(iter(ways))]
    rows = [
        {
            "way": way,
            "prompt_tokens": sum(usage.prompt_tokens for usage in usages[way]),
            "fed_tokens": sum(usage.fed_tokens for usage in usages[way]),
            "new_tokens": sum(usage.new_tokens for usage in usages[way]),
            "seconds": spread(values),
            "ratio": spread([before / now for before, now in zip(first, values, strict=True)]),
        }
        for way, values in seconds.items()
    ]
    return {"dialogs": dialogs, "turns": turns, "rows": rows}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All rows of the tables."""
    cpu = CpuUse()
    models = []
    for name in args.models:
        model = open_model(name)
        rows = [
            second_turns(model, batch, history, args.answer, args.new, args.repeats)
            for batch in args.batches
            for history in args.histories
        ]
        models.append({"name": name, "config": dataclasses.asdict(model.config), "rows": rows})
    told = [
        {"name": name, **whole_dialogs(Assistant.load(name, max_batch=args.dialogs), args.turns, args.repeats)}
        for name in args.models
        if name != "tiny"
    ]
    return {
        "models": models,
        "dialogs": told,
        "repeats": args.repeats,
        "share_of_others": cpu.share_of_others(),
        "hardware": hardware(),
        "versions": versions(PACKAGES),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def markdown(result: dict[str, Any]) -> str:
    """One line per model, batch and history; then one per way to answer whole dialogs."""

    def text(values: dict[str, Any], digits: int = 1) -> str:
        return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}..{values['max']:.{digits}f})"

    lines = [
        "| model | batch | prompt | read with the cache | read anew, ms | with the cache, ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in result["models"]:
        for row in model["rows"]:
            figures = " | ".join(text(row[name]) for name in ("anew_ms", "kept_ms", "ratio"))
            lines.append(
                f"| {model['name']} | {row['batch']} | {row['prompt_tokens']} | {row['fed_tokens']} | {figures} |"
            )
    for told in result["dialogs"]:
        lines += [
            "",
            f"{told['dialogs']} dialogs of {told['turns']} turns, model {told['name']}:",
            "",
            "| | tokens of all prompts | read | answered | seconds | ratio |",
            "|---|---|---|---|---|---|",
        ]
        for row in told["rows"]:
            figures = " | ".join(str(row[name]) for name in ("prompt_tokens", "fed_tokens", "new_tokens"))
            lines.append(f"| {row['way']} | {figures} | {text(row['seconds'], 2)} | {text(row['ratio'], 2)} |")
    others = result["share_of_others"]
    if others is None or others > BUSY:
        known = "an unknown share" if others is None else f"{others:.0%}"
        lines += ["", f"Do not quote: other programs used {known} of the CPU meanwhile."]
    return "\n".join(
        [
            *lines,
            "",
            "Time to the first token of a second turn, and for whole dialogs; median (lowest..highest) of "
            f"{result['repeats']}; "
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
    parser.add_argument("--models", nargs="+", default=["tiny", "numbers"], help="tiny, or what load_model knows")
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 8], help="dialogs at once (1 8)")
    parser.add_argument("--histories", nargs="+", type=positive, default=[120, 480, 900], help="tokens (120 480 900)")
    parser.add_argument("--answer", type=positive, default=16, help="tokens of the history that were answered (16)")
    parser.add_argument("--new", type=positive, default=16, help="tokens that the second turn adds (16)")
    parser.add_argument("--dialogs", type=positive, default=8, help="of short texts (8)")
    parser.add_argument("--turns", type=positive, default=3, help="of each of them (3)")
    parser.add_argument("--repeats", type=positive, default=7, help="(7)")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        if min(args.histories) < args.answer + 2:
            raise UserError("a history must be longer than its answer by two tokens")
        result = run(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(args.out, result)
        table = markdown(result)
        store.write_text(args.out.with_suffix(".md"), f"# Second turns of dialogs\n\n{table}")
    except (UserError, OSError) as error:
        print(f"second_turn: {error}", file=sys.stderr)
        return 1
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
