"""`aromni generate`: one task on one or many inputs, real media in and out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from typing import TYPE_CHECKING, Any

from aromni_jax.errors import UserError

if TYPE_CHECKING:
    from aromni_jax.tasks import Assistant, Options, Part, Reply, Speech

EXAMPLE = 'aromni generate tts --model numbers --input "four two" --out runs/speech'

# Name on the command line -> task, and what an input is.
TASKS = {
    "asr": ("speech_to_text", "audio"),
    "tts": ("text_to_speech", "text"),
    "caption": ("image_caption", "image"),
    "t2i": ("text_to_image", "text"),
    "s2i": ("speech_to_image", "audio"),
    "i2s": ("image_to_speech", "image"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "task",
        choices=TASKS,
        help="asr: speech to text; tts: text to speech; caption: picture to text; t2i: text to picture; "
        "s2i: speech to picture; i2s: picture to speech",
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="INPUT",
        help="sound or picture files, or texts (quoted); a *.jsonl file holds one "
        '{"text"|"audio"|"image": ..., "id": ...} per line, a *.txt file one text per line',
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the results and result.json")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    parser.add_argument("--instruction", help="in place of the template's own")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model to talk to; shared with `aromni chat`."""
    parser.add_argument("--model", default="numbers", help="model of any format, or a shipped one: numbers or things")
    parser.add_argument("--world", help="folder or name of the codecs, where the model does not say")
    parser.add_argument("--template", help="prompt template, where the model does not say: aromni or brief")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How to decode; shared with `aromni chat`."""
    parser.add_argument("--temperature", type=float, help="sampling temperature, 0: greedy (default: the task's own)")
    parser.add_argument("--top-k", type=int, default=0, help="sample among the k best (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample in the nucleus of this mass")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: less repetition")
    parser.add_argument("--guidance-text", type=float, help="text guidance of pictures (the reference: 3.07)")
    parser.add_argument("--guidance-image", type=float, default=1.0, help="image guidance of pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--max-new-tokens", type=int, help="at most so many tokens per answer")


def load_assistant(args: argparse.Namespace) -> Assistant:
    """The model of `add_model_arguments`."""
    from aromni_jax.tasks import Assistant

    return Assistant.load(args.model, world=args.world, template=args.template)


def read_options(args: argparse.Namespace, task: str) -> Options:
    """The options of `add_sampling_arguments` in the state of the answer, the task's own where none is given."""
    from aromni_jax.decoding import Guidance, Policy
    from aromni_jax.tasks import task_options
    from aromni_jax.tasks.requests import output_state

    options = task_options(task)
    policies = dict(options.policies)
    chosen = Policy(
        greedy=not args.temperature,
        temperature=args.temperature or 1.0,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
    )
    if args.temperature is not None or chosen != Policy(greedy=True):
        policies[output_state(task)] = chosen
    guidance = None if args.guidance_text is None else Guidance(args.guidance_text, args.guidance_image)
    return dataclasses.replace(
        options, policies=policies, guidance=guidance, seed=args.seed, max_new_tokens=args.max_new_tokens
    )


def run(args: argparse.Namespace) -> int:
    """Writes one file per input and result.json. Bad inputs are reported and the others done; exit code 1 then."""
    task, kind = TASKS[args.task]
    items = [item for given in args.input for item in _expand(given, kind)]
    assistant = load_assistant(args)
    good: list[tuple[int, dict[str, str], Part]] = []
    records: list[dict[str, Any]] = [{} for _ in items]
    for number, item in enumerate(items):
        try:
            good.append((number, item, read_part(assistant, kind, item["value"])))
        except UserError as error:
            records[number] = {"id": item["id"], "input": item["value"], "error": str(error)}
            print(f"{item['id']}: {error}", file=sys.stderr)
    options = read_options(args, task)
    replies = assistant.answer(task, [[part] for *_, part in good], options, args.instruction)
    for (number, item, _), reply in zip(good, replies, strict=True):
        name = f"{number:04d}_{_slug(item['id'])}"
        records[number] = {"id": item["id"], "input": item["value"], **write_reply(assistant, reply, args.out, name)}
        print(f"{item['id']}: {records[number].get('text') or ', '.join(records[number]['files'])}")
    write_json(args.out / "result.json", {"task": task, "model": str(args.model), "results": records})
    print(f"{len(good)} of {len(items)} done: {args.out / 'result.json'}")
    return 0 if len(good) == len(items) else 1


def read_part(assistant: Assistant, kind: str, value: str) -> Part:
    """One input: kind "text" takes the text itself, "audio" and "image" a path."""
    from aromni_jax.codecs import read_image
    from aromni_jax.tasks import Text

    if kind == "text":
        if not value.strip():
            raise UserError("the text is empty")
        return Text(value)
    if kind == "audio":
        return read_speech(assistant, value)
    return assistant.look([read_image(value)])[0]


def read_speech(assistant: Assistant, path: str) -> Speech:
    """A sound file as speech codes."""
    from aromni_jax.codecs import read_audio

    return assistant.hear([read_audio(path, assistant.sample_rate)])[0]


def write_reply(assistant: Assistant, reply: Reply, folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Write what a reply holds as name.txt, name.wav, name.png; returns its record for a JSON file."""
    from aromni_jax.codecs import write_png, write_wav

    media = assistant.media(reply)
    files = []
    if media.text:
        files.append(f"{name}.txt")
        _write_text(folder / files[-1], media.text + "\n")
    if media.wave is not None:
        files.append(f"{name}.wav")
        write_wav(folder / files[-1], media.wave, media.sample_rate)
    for number, image in enumerate(media.images):
        files.append(f"{name}.png" if number == 0 else f"{name}_{number + 1}.png")
        write_png(folder / files[-1], image)
    usage = reply.result.usage
    record: dict[str, Any] = {"files": files, "finish": reply.result.finish}
    if media.text:
        record["text"] = media.text
    if media.transcript is not None:
        record["transcript"] = media.transcript
    if media.wave is not None:
        record["seconds_of_speech"] = round(len(media.wave) / media.sample_rate, 3)
    if reply.dropped.turns:
        record["dropped"] = {"turns": reply.dropped.turns, "tokens": reply.dropped.tokens}
    record["usage"] = {
        "prompt_tokens": usage.prompt_tokens,
        "reused_tokens": usage.reused_tokens,
        "fed_tokens": usage.fed_tokens,
        "new_tokens": usage.new_tokens,
        "first_token_seconds": round(usage.first_token, 3),
        "total_seconds": round(usage.total, 3),
    }
    return record


def write_json(path: pathlib.Path, value: Any) -> None:
    """Indented JSON, atomically."""
    _write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_jsonl(path: pathlib.Path) -> list[tuple[int, Any]]:
    """(line number, value) of every non-empty line; `UserError` naming the line that is not JSON."""
    rows = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from error
    return rows


def _expand(given: str, kind: str) -> list[dict[str, str]]:
    """The items that one --input stands for."""
    path = pathlib.Path(given)
    if path.suffix == ".jsonl":
        return [_json_item(path, number, row, kind) for number, row in read_jsonl(path)]
    if kind == "text" and path.suffix == ".txt":
        lines = [line.strip() for line in _read_text(path).splitlines()]
        return [{"id": line, "value": line} for line in lines if line]
    return [{"id": given if kind == "text" else path.stem, "value": given}]


def _json_item(path: pathlib.Path, number: int, row: Any, kind: str) -> dict[str, str]:
    where = f"{path}, line {number}"
    if not isinstance(row, dict) or not isinstance(row.get(kind), str):
        raise UserError(f'{where}: expected an object with a string "{kind}"')
    unknown = set(row) - {kind, "id"}
    if unknown:
        raise UserError(f"{where}: unknown field {sorted(unknown)[0]!r}; known are {kind} and id")
    value = row[kind] if kind == "text" else str(path.parent / row[kind])
    return {"id": str(row.get("id", row[kind])), "value": value}


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None


def _write_text(path: pathlib.Path, text: str) -> None:
    from aromni_jax.codecs.media import write_atomic

    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:40] or "item"
