"""`aromni inspect`: look at a model, a run, a record or row file, a data set or a token stream."""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aromni_jax.errors import UserError
from aromni_jax.vocabulary import TASKS, JointVocabulary, Modality

if TYPE_CHECKING:
    from aromni_jax.data import Manifest

EXAMPLE = "aromni inspect runs/demo"

_COLOURS = {Modality.TEXT: "32", Modality.IMAGE: "35", Modality.SPEECH: "36", Modality.MARKER: "33"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "path",
        nargs="+",
        metavar="[data] PATH",
        help="model of any format (model folder, run, checkpoint, Hugging Face, Meta, a shipped name), data set "
        "folder, *.array_record, or a JSON file of token ids",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="aromni|PATH",
        help="whose ids a token stream, a lone record file or a foreign checkpoint holds: the official layout, or "
        "that of a model, run or data set",
    )
    parser.add_argument(
        "--text",
        type=pathlib.Path,
        metavar="FILE",
        help="of a model: its next-token loss on this text under both norm orders",
    )
    parser.add_argument("--world", help="whose text codec reads the text pieces (default: the data set's, or numbers)")
    parser.add_argument("--limit", type=int, default=5, metavar="N", help="records or rows to print (default: 5)")
    record = parser.add_argument_group("a record of a data set")
    record.add_argument("--record", type=int, metavar="N", help="show it; counted from 0 over the tasks of the split")
    record.add_argument("--split", default="train", metavar="NAME", help="default: train")
    record.add_argument("--out", type=pathlib.Path, metavar="DIR", help="write it there as text, PNG and WAV")


def run(args: argparse.Namespace) -> int:
    """Prints; exit code 1 if a token stream is not well-formed, else 0."""
    path = _path(args.path)
    sound = True
    if args.record is not None:
        lines = _record(path, args)
    elif path.suffix == ".json" and path.is_file():
        lines, sound = _stream(path, _vocabulary(args.vocabulary, path), _world(args.world, path))
    elif path.is_file():
        lines = _record_file(path, _vocabulary(args.vocabulary, path), _world(args.world, path), args.limit)
    elif (path / "manifest.json").is_file():
        from aromni_jax.prepare.describe import describe_data_set

        lines = describe_data_set(path)
    else:
        lines = _model(path, args.vocabulary, args.text)
    print("\n".join(lines))
    return 0 if sound else 1


def _path(words: Sequence[str]) -> pathlib.Path:
    """PATH, or `data PATH`: a data set."""
    if len(words) > 2 or (len(words) == 2 and words[0] != "data"):
        raise UserError(f"inspect {' '.join(words)}: give one path, or data and the path of a data set")
    path = pathlib.Path(words[-1])
    if len(words) == 2 and not (path / "manifest.json").is_file():
        raise UserError(f"{path}: no prepared data set: make one with `aromni prepare`")
    return path


def _record(path: pathlib.Path, args: argparse.Namespace) -> list[str]:
    from aromni_jax.data import read_manifest
    from aromni_jax.prepare.describe import record_at, write_record

    record = record_at(path, args.split, args.record)
    manifest, codec = read_manifest(path), _text_codec(_world(args.world, path / "manifest.json"))
    if codec and manifest.codecs.get("text", codec.fingerprint) != codec.fingerprint:
        codec = None  # it would read other words out of these pieces
    lines = [
        f"{record.id}  {record.task}, {len(record)} tokens, response {record.response_length}",
        "  " + spans(record.tokens, manifest.vocabulary, codec),
    ]
    if args.out:
        files = write_record(path, record, args.out, args.world)
        lines.append(f"  written: {', '.join(str(args.out / file) for file in files)}")
    return lines


def _model(path: pathlib.Path, vocabulary: str | None, text: pathlib.Path | None) -> list[str]:
    from aromni_jax.convert import load_model, open_source
    from aromni_jax.convert.describe import describe, describe_losses, next_token_losses, text_ids

    known = named_vocabulary(vocabulary) if vocabulary else None
    with open_source(path, known) as source:
        lines = describe(source)
        ids = text_ids(source, text) if text else None
    if text is not None and ids is not None:
        model = load_model(path, known)
        lines += describe_losses(model, next_token_losses(model, ids), len(ids), text)
    return lines


def _record_file(path: pathlib.Path, vocabulary: JointVocabulary, world: str, limit: int) -> list[str]:
    from aromni_jax.data.files import RecordFile
    from aromni_jax.data.record import Record
    from aromni_jax.data.rows import Row

    file = RecordFile(path)
    try:
        Record.from_bytes(file[0])
    except IndexError:
        return [f"{path}: empty"]
    except UserError:
        rows = (Row.from_bytes(file[i], vocabulary, file.where(i)) for i in range(len(file)))
        return _rows(path, list(rows), vocabulary, world, limit)
    return _records(path, vocabulary, world, limit)


def _records(path: pathlib.Path, vocabulary: JointVocabulary, world: str, limit: int) -> list[str]:
    from aromni_jax.data import read_records

    records = list(read_records(path, vocabulary))
    lengths = [len(record) for record in records]
    tokens = np.concatenate([record.tokens for record in records])
    lines = [f"records {path}: {len(records):,} examples, {sum(lengths):,} tokens"]
    lines += [f"  tokens each: shortest {min(lengths)}, median {int(np.median(lengths))}, longest {max(lengths)}"]
    lines += [_shares("tasks", collections.Counter(record.task for record in records)), _modalities(tokens, vocabulary)]
    for record in records[:limit]:
        lines.append(f"{record.id}  {record.task}, {len(record)} tokens, response {record.response_length}")
        lines.append("  " + spans(record.tokens, vocabulary, _text_codec(world)))
    return lines


def _rows(path: pathlib.Path, rows: list[Any], vocabulary: JointVocabulary, world: str, limit: int) -> list[str]:
    real = [row.segment_ids > 0 for row in rows]
    filled = sum(int(mask.sum()) for mask in real)
    examples = sum(int(row.segment_ids.max()) for row in rows)
    tasks: collections.Counter[str] = collections.Counter()
    for row in rows:
        starts = np.flatnonzero(np.diff(row.segment_ids, prepend=0) > 0)
        tasks.update(TASKS[task] for task in row.task_ids[starts])
    length = len(rows[0].tokens)
    lines = [
        f"rows {path}: {len(rows):,} rows of {length} tokens, {examples:,} examples ({examples / len(rows):.1f} each)",
        f"  filled {filled / (len(rows) * length):.1%}",
        _shares("tasks", tasks),
        _modalities(np.concatenate([row.tokens[mask] for row, mask in zip(rows, real, strict=True)]), vocabulary),
    ]
    for number, row in enumerate(rows[:limit]):
        lines.append(f"row {number}: {int(row.segment_ids.max())} examples")
        for segment in range(1, int(row.segment_ids.max()) + 1):
            lines.append("  " + spans(row.tokens[row.segment_ids == segment], vocabulary, _text_codec(world)))
    return lines


def _stream(path: pathlib.Path, vocabulary: JointVocabulary, world: str) -> tuple[list[str], bool]:
    """What to print, and whether the stream is well-formed."""
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    tokens = values.get("tokens") if isinstance(values, dict) else values
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise UserError(f'{path}: expected a list of ids, or an object with such a list under "tokens"')
    try:
        ids = np.asarray(tokens, np.int64)
    except OverflowError:
        raise UserError(f"{path}: holds a number of more than 64 bits, which is no id") from None
    sound = True
    lines = [f"stream {path}: {len(ids)} tokens", _modalities(ids, vocabulary)]
    try:
        vocabulary.check(ids, str(path))
        lines.append("  well-formed")
    except UserError as error:
        sound = False
        lines.append(f"  not well-formed: {error}")
    return [*lines, spans(ids, vocabulary, _text_codec(world))], sound


def spans(tokens: np.ndarray, vocabulary: JointVocabulary, text_codec: Any | None) -> str:
    """A stream as one line of runs: `<bos> "two three" <boi> image[32: 4 17 2 ...] <eoi>`, coloured in a terminal."""
    names = {token: name for name, token in vocabulary.markers.items()}
    inside = (tokens >= 0) & (tokens < vocabulary.size)
    kinds = np.where(inside, vocabulary.modality(tokens), Modality.MARKER)
    edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(tokens)]
    parts = []
    for start, stop in itertools.pairwise(edges):
        run, kind = tokens[start:stop], Modality(int(kinds[start])) if start < stop else Modality.MARKER
        if kind == Modality.MARKER:
            text = " ".join(f"<{names.get(int(token), int(token))}>" for token in run)
        elif kind == Modality.TEXT:
            pieces = [int(piece) for piece in vocabulary.text_pieces(run)]
            try:
                text = (
                    json.dumps(text_codec.decode(pieces), ensure_ascii=False) if text_codec else f"text{_some(pieces)}"
                )
            except UserError:  # pieces of another tokenizer than the world's
                text = f"text{_some(pieces)}"
        else:
            codes = vocabulary.image_codes(run) if kind == Modality.IMAGE else vocabulary.speech_codes(run)
            text = f"{kind.name.lower()}{_some(codes.tolist())}"
        parts.append(f"\033[{_COLOURS[kind]}m{text}\033[0m" if sys.stdout.isatty() else text)
    return " ".join(parts)


def named_vocabulary(name: str) -> JointVocabulary:
    """ "aromni" for the official layout, else that of a model, run or data set."""
    from aromni_jax.convert import open_source
    from aromni_jax.data import read_manifest

    if name == "aromni":
        return JointVocabulary.aromni()
    if (pathlib.Path(name) / "manifest.json").is_file():
        return read_manifest(name).vocabulary
    with open_source(name) as source:
        return source.vocabulary


def _vocabulary(name: str | None, path: pathlib.Path) -> JointVocabulary:
    """The named one; without a name, that of the data set the file lies in."""
    if name is not None:
        return named_vocabulary(name)
    if (manifest := _manifest_above(path)) is None:
        raise UserError(f"{path}: whose ids are these? Give --vocabulary aromni, or a model, run or data set folder")
    return manifest.vocabulary


def _world(name: str | None, path: pathlib.Path) -> str:
    """The named one; without a name, that of the data set the file lies in, or the numbers world."""
    manifest = None if name else _manifest_above(path)
    if manifest and "codecs_at" in manifest.request:
        return (manifest.request["codecs_at"] or {}).get("text", "")  # none: a source of ids
    return name or (manifest.request.get("world") if manifest else None) or "numbers"


def _manifest_above(path: pathlib.Path) -> Manifest | None:
    """Of the data set that the file lies in, if it lies in one."""
    from aromni_jax.data import read_manifest

    folders = (folder for folder in path.absolute().parents if (folder / "manifest.json").is_file())
    folder = next(folders, None)
    return None if folder is None else read_manifest(folder)


@functools.cache
def _text_codec(world: str) -> Any | None:
    from aromni_jax.codecs import TextCodec, TokenizerJson

    try:
        return TokenizerJson.load(world) if world.endswith(".json") else TextCodec.load(world)
    except UserError:
        return None


def _modalities(tokens: np.ndarray, vocabulary: JointVocabulary) -> str:
    kinds = vocabulary.modality(tokens)
    return _shares("modalities", {kind.name.lower(): int((kinds == kind).sum()) for kind in Modality})


def _shares(title: str, counts: Any) -> str:
    total = max(sum(counts.values()), 1)
    return f"  {title}: " + ", ".join(f"{name} {count:,} ({count / total:.1%})" for name, count in counts.items())


def _some(codes: Sequence[int]) -> str:
    shown = " ".join(map(str, codes[:6]))
    return f"[{len(codes)}: {shown}{' ...' if len(codes) > 6 else ''}]"
