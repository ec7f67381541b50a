"""One task on many inputs, from lists and files into a folder. The same call goes on where an earlier one stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from aromni_jax.codecs import read_audio, read_image
from aromni_jax.errors import UserError
from aromni_jax.tasks.answers import Reply
from aromni_jax.tasks.assistant import Assistant
from aromni_jax.tasks.parts import Part, Text
from aromni_jax.tasks.reply_files import file_name, write_json, write_reply
from aromni_jax.tasks.requests import Options

Kind = Literal["text", "audio", "image"]
RESULT = "result.json"
_SAVED_EVERY = 5.0  # seconds between two states of the result file: what a kill can cost
_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclasses.dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
      id: what it is called in the results.
      value: the text, or the path of the file.
      error: what is wrong with the line of the list that it comes from; "" = nothing.
    """

    id: str
    value: str
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is done with every item.

    Attributes:
      task: by its name in `vocabulary.TASKS`.
      kind: of its input.
      options: item n draws with their seed + n.
      instruction: None = the template's own.
    """

    task: str
    kind: Kind
    options: Options
    instruction: str | None = None


def read_items(inputs: Sequence[str], kind: Kind) -> list[Item]:
    """The items that the words of a command line stand for.

    A *.jsonl file holds one {kind: text or path, "id": ...} per line (paths are relative to its folder), a *.txt file
    one text per line; anything else is itself a text or a path. A bad line is an item with an error.

    Raises UserError: a list that cannot be read, or no item at all.
    """
    items = [item for given in inputs for item in _expand(given, kind)]
    if not items:
        raise UserError(f"no input in {', '.join(inputs[:3])}: it is empty")
    return items


def generate_into(
    folder: pathlib.Path,
    assistant: Assistant,
    job: Job,
    items: Sequence[Item],
    about: Mapping[str, Any],
    done: Callable[[dict[str, Any], bool], object],
) -> list[dict[str, Any]]:
    """Files for every item in `folder` and a record of each in its result.json; returns the records, in order.

    A bad item is a record with an "error"; the others are done. What an earlier call has done of the same inputs with
    the same model and options is kept. However this ends, result.json has what is done by then.

    Args:
      about: more keys of result.json.
      done: gets each record as it comes, those of short answers before others, and whether it was there before.

    Raises UserError: the folder cannot be written.
    """
    common = [assistant.fingerprint, job.task, repr(job.options), job.instruction]
    keys = [_key(common, number, item, job.kind) for number, item in enumerate(items)]
    records = _kept(folder, keys)
    for number in sorted(records):
        done(records[number], True)

    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        rows = [records[number] for number in sorted(records)]
        write_json(folder / RESULT, {"task": job.task, **about, "results": rows})
        saved = time.monotonic()

    def tell(number: int, reply: Reply | UserError) -> None:
        item = items[number]
        record: dict[str, Any] = {"id": item.id, "input": item.value}
        if isinstance(reply, UserError):
            record["error"] = str(reply)
        else:
            record |= write_reply(assistant, reply, folder, f"{number:04d}_{file_name(item.id)}")
            record["key"] = keys[number]
        records[number] = record
        done(record, False)
        if time.monotonic() - saved > _SAVED_EVERY:
            save()

    todo = [number for number in range(len(items)) if number not in records]

    def given() -> Iterator[tuple[int, list[Part]]]:
        """What is to be done, read as many at a time as are decoded at once."""
        for start in range(0, len(todo), assistant.max_batch):
            numbers = todo[start : start + assistant.max_batch]
            for number, part in zip(numbers, _parts(assistant, job.kind, [items[n] for n in numbers]), strict=True):
                if isinstance(part, UserError):
                    tell(number, part)
                else:
                    yield number, [part]

    try:
        answers = assistant.answers(job.task, given(), job.options, job.instruction, at_once=len(todo))
        with contextlib.closing(answers):
            for number, reply in answers:
                tell(number, reply)
    finally:
        save()
    return [records[number] for number in sorted(records)]


def read_jsonl(path: pathlib.Path) -> list[tuple[int, Any]]:
    """(line number, value, or the `UserError` of a line that is not JSON) of every line that is not empty."""
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):  # a JSON text may hold what else ends a line
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:  # also a number of too many digits
                rows.append((number, UserError(f"not JSON ({getattr(error, 'msg', error)})")))
    return rows


def read_text(path: pathlib.Path) -> str:
    """A text file; `UserError` where it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{path}: {what}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None


def _expand(given: str, kind: Kind) -> list[Item]:
    """The items that one word stands for."""
    path = pathlib.Path(given)
    if path.suffix == ".jsonl":
        return [_json_item(path, number, row, kind) for number, row in read_jsonl(path)]
    if kind == "text" and path.suffix == ".txt":
        lines = [line.strip() for line in read_text(path).splitlines()]
        return [Item(line, line) for line in lines if line]
    return [Item(given if kind == "text" else path.stem, given)]


def _json_item(path: pathlib.Path, number: int, row: Any, kind: Kind) -> Item:
    where = f"{path}, line {number}"
    if isinstance(row, UserError):
        return Item(where, "", str(row))
    if not isinstance(row, dict) or not isinstance(row.get(kind), str):
        return Item(where, "", f'expected an object with a string "{kind}"')
    value = row[kind] if kind == "text" else str(path.parent / row[kind])
    unknown = sorted(set(row) - {kind, "id"})
    if unknown:
        return Item(where, value, f"unknown field {unknown[0]!r}; known are {kind} and id")
    return Item(str(row.get("id", row[kind])), value)


def _key(common: Sequence[Any], number: int, item: Item, kind: Kind) -> str:
    """What the answer to an item depends on, in short; a file counts by its size and time."""
    stamp: list[int] = []
    if kind != "text":
        try:
            status = pathlib.Path(item.value).stat()
            stamp = [status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):
            pass  # it will be named when it is read
    words = json.dumps([*common, number, item.id, item.value, *stamp])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _kept(folder: pathlib.Path, keys: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Number -> record of what is done already, its files whole."""
    try:
        rows = json.loads((folder / RESULT).read_text(encoding="utf-8"))["results"]
        found = {row["key"]: row for row in rows if {"key", "files"} <= row.keys()}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # none there, or not ours: all is made anew
        return {}
    there = ((number, found[key]) for number, key in enumerate(keys) if key in found)
    return {number: row for number, row in there if all((folder / name).is_file() for name in row["files"])}


def _parts(assistant: Assistant, kind: Kind, items: Sequence[Item]) -> list[Part | UserError]:
    """Items as prompts take them; what is wrong with a bad one in its place."""

    def read(item: Item) -> Any:
        if item.error:
            raise UserError(item.error)
        if kind == "text":
            if not item.value.strip():
                raise UserError("the text is empty")
            return Text(item.value)
        return read_audio(item.value, assistant.sample_rate) if kind == "audio" else read_image(item.value)

    media: list[Any] = []
    for item in items:
        try:
            media.append(read(item))
        except UserError as error:
            media.append(error)
    encode: Mapping[Kind, Callable[[Sequence[Any]], Sequence[Part]]] = {
        "text": list,
        "audio": assistant.hear,
        "image": assistant.look,
    }
    return _good(encode[kind], media)


def _good(function: Callable[[Sequence[_A]], Sequence[_B]], given: Sequence[_A | UserError]) -> list[_B | UserError]:
    """The function's results for all that is no error, at once; an error keeps its place."""
    places = [place for place, value in enumerate(given) if not isinstance(value, UserError)]
    made = _each(function, [value for value in given if not isinstance(value, UserError)])
    results: dict[int, _B | UserError] = dict(zip(places, made, strict=True))
    errors = {place: value for place, value in enumerate(given) if isinstance(value, UserError)}
    return [(results | errors)[place] for place in range(len(given))]


def _each(function: Callable[[Sequence[_A]], Sequence[_B]], given: Sequence[_A]) -> list[_B | UserError]:
    """The function's results; where it refuses them all because of one (before it begins), that one by halving."""
    if not given:
        return []
    try:
        return list(function(given))
    except UserError as error:
        if len(given) == 1:
            return [error]
    half = len(given) // 2
    return _each(function, given[:half]) + _each(function, given[half:])
