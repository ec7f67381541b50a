"""`aromni chat`: a dialog in text, speech and pictures, in the terminal or from a file (SPEC 6.9)."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aromni_jax.cli.generate import (
    add_model_arguments,
    add_sampling_arguments,
    load_assistant,
    read_jsonl,
    read_options,
    read_part,
    read_speech,
    write_json,
    write_reply,
)
from aromni_jax.errors import UserError

if TYPE_CHECKING:
    from aromni_jax.decoding import Session
    from aromni_jax.tasks import Assistant, Options, Part, Speech

EXAMPLE = "aromni chat --model numbers --out runs/chat"

_HELP = """type a text, or
  /speech FILE   add a sound file to your next text (alone: send it at once with an empty line)
  /image FILE    add a picture
  /reset         forget the dialog
  /quit          leave"""

# Fields of a turn, SPEC 6.9; `text` goes in as text (the reference speaks it with another model first).
_TURN_FIELDS = (
    "text",
    "wav_path",
    "audio_path",
    "image_paths",
    "user_append_text",
    "reset",
    "dialog_id",
    "silence_head_sec",
    "silence_tail_sec",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "--input",
        type=pathlib.Path,
        help="dialogs as JSON or JSONL instead of the terminal: {dialog_id, turns}, or a list of turns; fields of a "
        f"turn: {', '.join(_TURN_FIELDS)}",
    )
    parser.add_argument("--base-dir", type=pathlib.Path, help="what paths in the input are relative to (its folder)")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/chat"), help="folder for answers (default: runs/chat)"
    )
    parser.add_argument(
        "--history",
        choices=("refuse", "drop_oldest"),
        default="refuse",
        help="when a dialog leaves no room for an answer: refuse the turn, or drop the oldest turns (default: refuse)",
    )
    parser.add_argument("--save-tokens", action="store_true", help="write each turn's tokens into its reply.json")
    add_model_arguments(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Chat until the input ends. From a file, a bad turn is reported and the others run; exit code 1 then."""
    dialogs = None if args.input is None else read_dialogs(args.input)
    assistant = load_assistant(args)
    options = dataclasses.replace(read_options(args, "chat"), history=args.history)
    if dialogs is None:
        return _terminal(assistant, options, args.out)
    base = args.base_dir or args.input.parent
    log = [
        _file_turn(assistant, options, turn, base, args.out, args.save_tokens, dialog)
        for dialog, turn in _turns(assistant, dialogs)
    ]
    write_json(args.out / "log.json", log)
    failed = sum("error" in entry for entry in log)
    print(f"{len(log) - failed} of {len(log)} turns done: {args.out / 'log.json'}")
    return 1 if failed else 0


class _Dialog:
    """What a dialog carries from turn to turn."""

    def __init__(self, dialog_id: str, session: Session) -> None:
        self.id = dialog_id
        self.session = session
        self.history: list[int] = []
        self.turns = 0


def read_dialogs(path: pathlib.Path) -> list[dict[str, Any]]:
    """A dialog {dialog_id, turns}, a list of dialogs, a list of turns, or JSONL with one of these objects per line."""
    if path.suffix == ".jsonl":
        value: Any = [row for _, row in read_jsonl(path)]
    else:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not JSON ({error})") from None
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a dialog, a list of dialogs or a list of turns")
    dialogs = rows if all("turns" in row for row in rows) else [{"turns": rows}]
    for number, dialog in enumerate(dialogs):
        dialog.setdefault("dialog_id", f"dialog_{number:04d}")
        if not isinstance(dialog["turns"], list):
            raise UserError(f"{path}, dialog {dialog['dialog_id']}: turns must be a list")
    return dialogs


def _turns(assistant: Assistant, dialogs: Sequence[dict[str, Any]]) -> Iterator[tuple[_Dialog, Any]]:
    """All turns with the state of the dialog they belong to; another dialog_id or `reset` starts without history."""
    for dialog in dialogs:
        state = _Dialog(_folder_name(dialog["dialog_id"]), assistant.session())
        for turn in dialog["turns"]:
            if isinstance(turn, dict):
                own = _folder_name(turn.get("dialog_id", state.id))
                if own != state.id:
                    state = _Dialog(own, assistant.session())
                if turn.get("reset"):
                    state.history = []
            yield state, turn


def _file_turn(
    assistant: Assistant,
    options: Options,
    turn: Any,
    base: pathlib.Path,
    out: pathlib.Path,
    save_tokens: bool,
    dialog: _Dialog,
) -> dict[str, Any]:
    """Run one turn and write its folder; the history stays as it was if the turn is bad."""
    dialog.turns += 1
    entry: dict[str, Any] = {"dialog_id": dialog.id, "turn": dialog.turns, "input": turn}
    try:
        parts = _turn_parts(assistant, turn, base)
        append_text = turn.get("user_append_text")
        reply, history = assistant.chat(dialog.history, parts, append_text, options, dialog.session)
        folder = out / dialog.id / f"turn_{dialog.turns:04d}"
        entry.update(write_reply(assistant, reply, folder, "reply"))
        if save_tokens:
            entry["tokens"] = reply.result.tokens.tolist()
        write_json(folder / "reply.json", entry)
        dialog.history = history
        print(f"{dialog.id} turn {dialog.turns}: {entry.get('text') or ', '.join(entry['files'])}")
    except UserError as error:
        entry["error"] = str(error)
        print(f"{dialog.id} turn {dialog.turns}: {error}", file=sys.stderr)
    return entry


def _turn_parts(assistant: Assistant, turn: Any, base: pathlib.Path) -> list[Part]:
    """The user's parts of one turn of a file."""
    if not isinstance(turn, dict):
        raise UserError(f"a turn is an object, got {turn!r}")
    for field in turn:
        if field not in _TURN_FIELDS:
            near = difflib.get_close_matches(field, _TURN_FIELDS, 1)
            raise UserError(f"unknown field {field!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for field in ("text", "wav_path", "audio_path", "user_append_text"):
        if not isinstance(turn.get(field), str | None):
            raise UserError(f"{field} must be a text, got {turn[field]!r}")
    wav = turn.get("wav_path", turn.get("audio_path"))
    paths = turn.get("image_paths") or []
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UserError("image_paths must be a list of paths")
    parts = [read_part(assistant, "image", str(base / path)) for path in paths]
    if turn.get("text") is not None:  # wins over a recording, as in the reference
        parts.append(read_part(assistant, "text", turn["text"]))
    elif wav is not None:
        parts.append(_with_silence(assistant, read_speech(assistant, str(base / wav)), turn))
    else:
        raise UserError("a turn needs text or wav_path")
    return parts


def _with_silence(assistant: Assistant, speech: Speech, turn: dict[str, Any]) -> Speech:
    """Codes of silence before and behind an utterance, encoded on their own (SPEC 6.9)."""
    import numpy as np

    from aromni_jax.tasks import Speech

    pieces = [speech.codes]
    for field, place in (("silence_head_sec", 0), ("silence_tail_sec", len(pieces) + 1)):
        seconds = turn.get(field, 0)
        if not isinstance(seconds, int | float) or not 0 <= seconds <= 60:
            raise UserError(f"{field} must be seconds between 0 and 60, got {seconds!r}")
        samples = round(seconds * assistant.sample_rate)
        if samples:
            pieces.insert(place, assistant.hear([np.zeros(samples, np.float32)])[0].codes)
    return Speech(np.concatenate(pieces))


def _terminal(assistant: Assistant, options: Options, out: pathlib.Path) -> int:
    """Read lines until end of input or /quit."""
    print(_HELP)
    dialog = _Dialog("", assistant.session())
    parts: list[Part] = []
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            print()
            return 0
        command, _, rest = line.partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return 0
            if command == "/reset":
                dialog.history, parts = [], []
                print("(the dialog is forgotten)")
            elif command in ("/speech", "/image"):
                parts.append(read_part(assistant, {"/speech": "audio", "/image": "image"}[command], rest.strip()))
                print(f"({rest.strip()} added: type a text, or an empty line to send)")
            elif command.startswith("/"):
                print(_HELP)
            elif line or parts:
                sent = [*parts, *([read_part(assistant, "text", line)] if line else [])]
                dialog.turns += 1
                _answer(assistant, options, dialog, sent, out / f"turn_{dialog.turns:04d}")
                parts = []
        except UserError as error:
            print(f"! {error}")


def _answer(
    assistant: Assistant, options: Options, dialog: _Dialog, parts: Sequence[Part], folder: pathlib.Path
) -> None:
    """Run one turn of the dialog, printing text as it comes."""
    from aromni_jax.decoding import State, StateChange, TextPiece
    from aromni_jax.tasks import TurnDone

    done, label = None, ""
    for event in assistant.chat_events(dialog.history, parts, None, options, dialog.session):
        if isinstance(event, TextPiece):
            now = "heard" if event.state == State.TRANSCRIPT else "model"
            print(event.text if now == label else f"\n{now}> {event.text}", end="", flush=True)
            label = now
        elif isinstance(event, StateChange) and event.state in (State.SPEECH, State.IMAGE):
            print(" (speaks)" if event.state == State.SPEECH else " (draws)", end="", flush=True)
        elif isinstance(event, TurnDone):
            done = event
    print()
    assert done is not None, "every turn ends with TurnDone"
    dialog.history = done.history
    record = write_reply(assistant, done.reply, folder, "reply")
    for name in record["files"]:
        if not name.endswith(".txt"):
            print(f"  {folder / name}")
    if done.reply.dropped.turns:
        print(f"  (no room for all of the dialog: its oldest turns are dropped, {done.reply.dropped.turns} of them)")
    usage = done.result.usage
    print(f"  ({usage.new_tokens} tokens, {usage.total:.2f} s; read {usage.fed_tokens} of {usage.prompt_tokens})")


def _folder_name(dialog_id: Any) -> str:
    """A dialog id as a folder name that cannot leave the output folder."""
    return re.sub(r"[^\w.-]+", "_", str(dialog_id)).strip(".") or "dialog"
