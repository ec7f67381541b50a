"""`aromni chat`: a dialog in text, speech and pictures, in the terminal or from a file (SPEC 6.9)."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aromni_jax.cli.generate import add_model_arguments, add_sampling_arguments, load_assistant, read_options
from aromni_jax.errors import UserError

if TYPE_CHECKING:
    from aromni_jax.decoding import Session
    from aromni_jax.tasks import Assistant, Options, Part
    from aromni_jax.tasks.dialog import Script
    from aromni_jax.tasks.dialog_files import FileTurn, UserTurn
    from aromni_jax.tasks.synthesis import Synthesiser

EXAMPLE = "aromni chat --model numbers --out runs/chat"

_HELP = """type a text, or
  /speech FILE   add a sound file to your next text (alone: send it at once with an empty line)
  /image FILE    add a picture
  /reset         forget the dialog
  /quit          leave"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "--input",
        type=pathlib.Path,
        help="dialogs as JSON or JSON lines instead of the terminal: {dialog_id, turns}, several of them, or turns "
        "alone; a turn has text or wav_path, image_paths, user_append_text, speaker_wav, prompt_text, "
        "silence_head_sec, silence_tail_sec, silence_head_tokens, silence_tail_tokens, reset, dialog_id",
    )
    parser.add_argument("--base-dir", type=pathlib.Path, help="what paths in the input are relative to (its folder)")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/chat"), help="folder for answers (default: runs/chat)"
    )
    parser.add_argument(
        "--synthesiser",
        default="none",
        metavar="NAME",
        help="speaks your texts, so that the model hears them: hibari (pip install 'aromni_jax[speak]'), espeak "
        "(espeak-ng on PATH), cosyvoice2:FOLDER (of its model), or none: text goes in as text (default: none)",
    )
    parser.add_argument(
        "--history",
        choices=("refuse", "drop_oldest"),
        default="refuse",
        help="when a dialog leaves no room for an answer: refuse the turn, or drop the oldest turns (default: refuse)",
    )
    parser.add_argument("--save-tokens", action="store_true", help="write each reply's ids into output_tokens.json")
    add_model_arguments(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Chat until the input ends. Dialogs of a file run side by side; a bad turn is reported, with exit code 1."""
    from aromni_jax.tasks.dialog_files import read_dialogs
    from aromni_jax.tasks.synthesis import load_synthesiser

    turns = None if args.input is None else read_dialogs(args.input)
    synthesiser = load_synthesiser(args.synthesiser)
    assistant = load_assistant(args)
    options = dataclasses.replace(read_options(args, "chat"), history=args.history)
    chat = _Chat(assistant, options, synthesiser, args)
    return chat.terminal() if turns is None else chat.file(turns)


class _Chat:
    """What all turns share, and what the dialog in the terminal carries from turn to turn."""

    def __init__(
        self, assistant: Assistant, options: Options, synthesiser: Synthesiser | None, args: argparse.Namespace
    ) -> None:
        self.assistant, self.options, self.synthesiser, self.args = assistant, options, synthesiser, args
        self.append_text = assistant.prompts.template.instructions["chat"]
        self.begin()

    def begin(self) -> None:
        """A new dialog: nothing has been said."""
        self.session: Session = self.assistant.session()
        self.history: list[int] = []

    # -- from a file ---------------------------------------------------------------------------------

    def file(self, turns: Sequence[FileTurn]) -> int:
        """Run all turns; batch_log.json tells of every one that is done, in the file's order, however this ends.

        Dialogs are answered side by side, but for those of one folder, whose turns are numbered as they stand.
        """
        from aromni_jax.tasks.reply_files import file_name, write_json

        log: dict[int, dict[str, Any]] = {}
        dialogs: dict[str, list[tuple[int, FileTurn]]] = {}
        for place, turn in enumerate(turns):
            dialogs.setdefault(file_name(turn.dialog_id), []).append((place, turn))
        path = self.args.out / "batch_log.json"
        write_json(path, [])  # a folder that cannot be written is told before anything is decoded
        try:
            self.assistant.converse((self._script(own, log) for own in dialogs.values()), self.options)
        finally:
            write_json(path, [log[place] for place in sorted(log)])
        failed = sum("error" in entry for entry in log.values())
        print(f"{len(log) - failed} of {len(log)} turns done: {path}")
        return 1 if failed else 0

    def _script(self, turns: Sequence[tuple[int, FileTurn]], log: dict[int, dict[str, Any]]) -> Script:
        """Turns of one folder, with their places in the log; the history stays as it was if a turn is bad."""
        from aromni_jax.tasks.dialog import Said
        from aromni_jax.tasks.dialog_files import UserTurn, user_parts

        history: list[int] = []
        for place, turn in turns:
            history = [] if turn.fresh else history
            where = f"{turn.dialog_id} turn {turn.number}"
            try:
                said = UserTurn.parse(turn.value, self.args.base_dir or self.args.input.parent)
                if said.text is not None and said.voice.wav and not getattr(self.synthesiser, "takes_voices", False):
                    print(f"{where}: speaker_wav is not used by --synthesiser {self.args.synthesiser}", file=sys.stderr)
                parts = user_parts(self.assistant, said, self.synthesiser)
                reply, longer = yield Said(history, parts, said.user_append_text)
                meta = self._write(reply, turn.dialog_id, said)
            except UserError as error:
                print(f"{where}: {error}", file=sys.stderr)
                given = turn.value if isinstance(turn.value, dict) else {}
                log[place] = {
                    "dialog_id": turn.dialog_id,
                    "turn_index": turn.number,
                    "text": given.get("text"),
                    "wav_path": given.get("wav_path", given.get("audio_path")),
                    "error": str(error),
                }
                continue
            history, log[place] = longer, meta
            print(f"{where}: {meta['reply'] or ', '.join(meta['saved_images'] + meta['saved_audios'])}")

    def _write(self, reply: Any, dialog_id: str, said: UserTurn) -> dict[str, Any]:
        from aromni_jax.tasks.reply_files import write_turn

        about = said.said(self.append_text, self.args.synthesiser)
        return write_turn(self.assistant, reply, self.args.out, dialog_id, about, self.args.save_tokens)

    # -- in the terminal -----------------------------------------------------------------------------

    def terminal(self) -> int:
        """Read lines until end of input or /quit."""
        from aromni_jax.tasks.dialog_files import UserTurn, user_parts

        print(_HELP)
        said = UserTurn()
        parts: list[Part] = []
        while True:
            try:
                line = input("you> ").strip()
            except EOFError:
                print()
                return 0
            command, _, rest = line.partition(" ")
            path = pathlib.Path(rest.strip())
            try:
                if command in ("/quit", "/exit"):
                    return 0
                if command == "/reset":
                    self.begin()
                    said, parts = UserTurn(), []
                    print("(the dialog is forgotten)")
                elif command in ("/speech", "/image"):
                    new = UserTurn(wav_path=path) if command == "/speech" else UserTurn(image_paths=(path,))
                    parts += user_parts(self.assistant, new, None)
                    said = dataclasses.replace(
                        said, wav_path=new.wav_path or said.wav_path, image_paths=said.image_paths + new.image_paths
                    )
                    print(f"({path} added: type a text, or an empty line to send)")
                elif command.startswith("/"):
                    print(_HELP)
                elif line or parts:
                    spoken = user_parts(self.assistant, UserTurn(text=line), self.synthesiser) if line else []
                    self._answer([*parts, *spoken], dataclasses.replace(said, text=line or None))
                    said, parts = UserTurn(), []
            except UserError as error:
                print(f"! {error}")

    def _answer(self, parts: Sequence[Part], said: UserTurn) -> None:
        """Run one turn of the dialog, printing text as it comes."""
        from aromni_jax.decoding import State, StateChange, TextPiece
        from aromni_jax.tasks import TurnDone

        done, label = None, ""
        for event in self.assistant.chat_events(self.history, parts, None, self.options, self.session):
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
        self.history = done.history
        meta = self._write(done.reply, "terminal", said)
        for file in meta["saved_audios"] + meta["saved_images"]:
            print(f"  {file}")
        if done.reply.dropped.turns:
            dropped = done.reply.dropped.turns
            print(f"  (no room for all of the dialog: its oldest turns are dropped, {dropped} of them)")
        usage = done.result.usage
        print(f"  ({usage.new_tokens} tokens, {usage.total:.2f} s; read {usage.fed_tokens} of {usage.prompt_tokens})")
