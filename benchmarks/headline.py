"""The clocks of the paper's headline, measured: first token, first sound, real-time factor, and seconds per picture.

AR-Omni's shape with random weights, and WavTokenizer at its published size for the sound, also random: neither changes
the time. The paper reports 146 ms to the first speech token and a real-time factor of 0.88. Every request is streamed
alone, as a user has it; `--chunks` are decoding steps per call, of which a listener waits for the first.

    python benchmarks/headline.py --out benchmarks/results/headline.json
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from decode_torch import bandwidth, step_bytes
from machine import hardware, positive, spread, versions

from aromni_jax import store
from aromni_jax.codecs import SpeechCodec, vq
from aromni_jax.codecs.wavtokenizer import WavTokenizer, WavTokenizerConfig
from aromni_jax.config import ModelConfig
from aromni_jax.decoding import Done, Engine, Guidance, Policy, Request, State
from aromni_jax.errors import UserError
from aromni_jax.model import PRESETS, init_params, split_layers
from aromni_jax.vocabulary import JointVocabulary

PACKAGES = ("aromni_jax", "jax", "jaxlib", "flax", "numpy")
FIGURES = {"first_token_ms": 1, "first_audio_ms": 1, "real_time_factor": 3, "total_s": 2, "step_ms": 2}  # digits
_SAMPLED = Policy(temperature=1.0, top_p=0.9)
_TINY = JointVocabulary.compact(text_pieces=64, image_codes=32, image_tokens=16, speech_codes=32)
_TINY_CODEC = WavTokenizerConfig(channels=2, strides=(2, 5), embed=8, codes=32, dim=32, hidden=48, blocks=2, window=40)


def models() -> dict[str, tuple[ModelConfig, JointVocabulary, WavTokenizerConfig]]:
    """By name: shape, vocabulary, and the speech codec that goes with it."""
    tiny = ModelConfig(vocab_size=_TINY.size, dim=32, layers=2, heads=2, kv_heads=2, head_dim=16, ffn_dim=64)
    omni = dataclasses.replace(PRESETS["ar-omni"], perceptual_dim=0)
    return {"ar-omni": (omni, JointVocabulary.aromni(), WavTokenizerConfig()), "tiny": (tiny, _TINY, _TINY_CODEC)}


def speech_codec(config: WavTokenizerConfig) -> SpeechCodec:
    """With random weights."""
    network = WavTokenizer(config)
    codebook_ke = np.random.default_rng(0).standard_normal((config.codes, config.embed), np.float32)
    return SpeechCodec(
        network, {"net": vq.init(network.build, 0), "codebook": jax.numpy.asarray(codebook_ke)}, "random"
    )


def requests(vocabulary: JointVocabulary, prompt: int, codes: int) -> dict[str, Request]:
    """What is measured, by name."""
    rng, v = np.random.default_rng(0), vocabulary

    def text(count: int) -> list[int]:
        return rng.integers(v.text.start, v.text.stop, count).tolist()

    heard = [v.boa, *rng.integers(v.speech.start, v.speech.stop, prompt - 2).tolist(), v.eoa]
    drawn = [v.boi, *rng.integers(v.image.start, v.image.stop, v.image_tokens).tolist(), v.eoi]
    speech = {"allowed": frozenset({State.SPEECH}), "first": State.SPEECH, "max_spans": 1, "max_new_tokens": codes}
    picture = {
        "allowed": frozenset({State.IMAGE}), "first": State.IMAGE, "max_spans": 1,
        "max_new_tokens": v.image_tokens + 4, "policies": {State.IMAGE: _SAMPLED},
    }  # fmt: skip
    return {
        "text to speech": Request(prompt_tokens=[v.bos, *text(prompt)], **speech),
        "speech to speech": Request(prompt_tokens=[v.bos, *heard], **speech),
        "text to picture": Request(prompt_tokens=[v.bos, *text(prompt)], **picture),
        "text to picture, guided": Request(prompt_tokens=[v.bos, *text(prompt)], guidance=Guidance(), **picture),
        "picture to picture, guided": Request(
            prompt_tokens=[v.bos, *drawn, *text(prompt)], guidance=Guidance(), **picture
        ),
    }


def clocks(engine: Engine, request: Request) -> dict[str, float]:
    """Of one request, streamed alone: milliseconds, factors, seconds."""
    *_, last = engine.stream([request])
    assert isinstance(last, Done)
    usage = last.result.usage
    found = {"first_token_ms": 1000 * usage.first_token, "total_s": usage.total}
    found["step_ms"] = 1000 * (usage.total - usage.first_token) / max(1, usage.new_tokens - 1)
    if usage.first_audio is not None and usage.real_time_factor is not None:
        found |= {"first_audio_ms": 1000 * usage.first_audio, "real_time_factor": usage.real_time_factor}
    return found


def run(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    config, vocabulary, codec = models()[args.model]
    reads = bandwidth()
    params = split_layers(jax.jit(init_params, static_argnums=0)(config, jax.random.PRNGKey(0)))
    model = types.SimpleNamespace(params=params, config=config, vocabulary=vocabulary)
    asked, rows = requests(vocabulary, args.prompt, args.codes), []
    for chunk in args.chunks:
        engine = Engine(model, speech_codec=speech_codec(codec), chunk=chunk)
        for name, request in asked.items():
            clocks(engine, request)  # compiles
            found = [clocks(engine, request) for _ in range(args.repeats)]
            row = {key: spread([figures[key] for figures in found]) for key in found[0]}
            rows.append({"what": name, "chunk": chunk, "prompt": len(request.prompt_tokens)} | row)
            say(f"chunks of {chunk}, {name}: first token {row['first_token_ms']['median']:.1f} ms")
    return {
        "model": args.model,
        "config": dataclasses.asdict(config),
        "rows": rows,
        "floor_ms": 1000 * step_bytes(config, 1, args.prompt + args.codes / 2) / reads,
        "repeats": args.repeats,
        "hardware": hardware() | {"device": str(jax.devices()[0].device_kind), "bytes_per_second": reads},
        "versions": versions(PACKAGES),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def markdown(result: dict[str, Any]) -> str:
    """The table, with what has to be known to read it."""

    def cell(row: dict[str, Any], key: str, digits: int) -> str:
        if key not in row:
            return ""
        median, low, high = (f"{row[key][name]:.{digits}f}" for name in ("median", "min", "max"))
        return f"{median} ({low}..{high})"

    head = ("what", "prompt", "steps per call", "first token, ms", "first sound, ms", "real-time factor", "whole, s")
    lines = [f"| {' | '.join((*head, 'ms per step'))} |", "|" + "---|" * (len(head) + 1)]
    for row in result["rows"]:
        figures = [
            ("first_token_ms", 1),
            ("first_audio_ms", 1),
            ("real_time_factor", 3),
            ("total_s", 2),
            ("step_ms", 2),
        ]
        cells = [row["what"], str(row["prompt"]), str(row["chunk"]), *(cell(row, *figure) for figure in figures)]
        lines.append(f"| {' | '.join(cells)} |")
    machine, config = result["hardware"], result["config"]
    lines += [
        "",
        f"{result['model']}: {config['layers']} layers of {config['dim']}, {config['compute_dtype']}, random.",
        f"Making the sound is counted in. Median (lowest..highest) of {result['repeats']}. Weights and cache take",
        f"{result['floor_ms']:.2f} ms per step at the {machine['bytes_per_second'] / 1e9:.0f} GB/s that are read here.",
        f"{machine['device']}; {machine['processor']}, {machine['cores']} cores; {result['date']};",
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
        "The AR-Omni paper reports 146 ms to the first speech token and a real-time factor of 0.88.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 0, or 1 with one line of reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.json", help="a .md goes beside it")
    parser.add_argument("--model", choices=models(), default="ar-omni", help="(ar-omni: 14 GB of weights)")
    parser.add_argument("--chunks", type=positive, nargs="+", default=[4, 32], metavar="N", help="(4 32)")
    parser.add_argument("--prompt", type=positive, default=120, metavar="N", help="tokens of the question (120)")
    parser.add_argument("--codes", type=positive, default=400, metavar="N", help="speech tokens of an answer (400)")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="(5)")
    args = parser.parse_args()
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        result = run(args, lambda line: print(line, file=sys.stderr, flush=True))
        store.write_json(args.out, result)
        text = markdown(result)
        store.write_text(args.out.with_suffix(".md"), f"# The headline's clocks\n\n{text}")
    except (UserError, OSError) as error:
        print(f"headline: {error}", file=sys.stderr)
        return 1
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
