"""`aromni codec`: pictures and sound files through a codec: encode, decode, roundtrip, report."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aromni_jax.errors import UserError
from aromni_jax.worlds import WORLDS

if TYPE_CHECKING:
    import tqdm

    from aromni_jax.codecs.media_files import Kind, MediaFile
    from aromni_jax.codecs.transcode import Codecs, Count

EXAMPLE = "aromni codec roundtrip --codec numbers recordings/ cat.jpg --out out"

_MEDIA = "pictures, sound files, or folders of them with all below; what a file is, is seen from its content"
_ACTIONS = {
    "encode": ("a file of codes (JSON lines) for each picture or sound file", _MEDIA, "folder of the codes"),
    "decode": ("a PNG or WAV for each line of files of codes", "files of codes, or folders of them", "folder"),
    "roundtrip": ("encode and decode, with figures of what is lost", _MEDIA, "folder; figures.json has the figures"),
    "report": ("an HTML page: originals beside reconstructions, players, figures", _MEDIA, "the page"),
}
_FIGURES = {  # of a summary, in this order: name -> how it is printed
    "psnr_db": "PSNR {:.2f} dB",
    "ssim": "SSIM {:.3f}",
    "log_spectral_distance_db": "log-spectral distance {:.2f} dB",
    "snr_db": "SNR {:.2f} dB",
    "bits_per_pixel": "{:.3g} bits per pixel",
    "bits_per_second": "{:.4g} bits per second",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, inputs, out) in _ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("inputs", nargs="+", type=pathlib.Path, metavar="INPUT", help=inputs)
        action.add_argument(
            "--codec",
            required=True,
            help="folder of a codec: codec.json, a published VQGAN or WavTokenizer, a Hugging Face Chameleon; or the "
            f"name of a shipped world ({' or '.join(WORLDS)})",
        )
        action.add_argument("--out", required=True, type=pathlib.Path, metavar="PATH", help=out)
        if name == "report":
            action.add_argument(
                "--shown", type=int, default=12, metavar="N", help="of each kind, beside the totals (default: 12)"
            )


def run(args: argparse.Namespace) -> int:
    """Bad files are named and the others done; exit code 1 then. The same command goes on where it stopped."""
    from aromni_jax.codecs.transcode import Count

    count = Count(_say)
    try:
        {"encode": _encode, "decode": _decode, "roundtrip": _roundtrip, "report": _report}[args.action](args, count)
    except KeyboardInterrupt:
        if args.action != "report":
            _say(f"{count.made + count.kept} done: {args.out}; the same command goes on")
        raise
    kept = f" ({count.kept} of them before)" if count.kept else ""
    failed = f", {count.failed} failed" if count.failed else ""
    print(f"{count.made + count.kept} done{kept}{failed}: {args.out}")
    return 1 if count.failed else 0


def _encode(args: argparse.Namespace, count: Count) -> None:
    from aromni_jax.codecs.transcode import encode_files

    files, codecs = _open_media(args, args.out)
    encode_files(files, codecs, args.out, _bar, count)


def _decode(args: argparse.Namespace, count: Count) -> None:
    from aromni_jax.codecs import code_files, media_files
    from aromni_jax.codecs.file_codec import kinds_at, load_file_codec
    from aromni_jax.codecs.transcode import decode_records, read_records

    found = media_files.find(args.inputs, args.out)
    paths = [row.path for row in found if row.given or row.name.endswith(code_files.SUFFIX)]
    if not paths:
        raise UserError(f"no {code_files.SUFFIX} file in {_words(args.inputs)}: `aromni codec encode` writes them")
    kinds = kinds_at(args.codec)
    records = read_records(paths, count)
    for place, record in records:
        if record.kind not in kinds:
            raise UserError(f"{place}: {record.kind} codes, and {args.codec} holds no {record.kind} codec")
    codecs = {kind: load_file_codec(args.codec, kind) for kind in kinds if any(r.kind == kind for _, r in records)}
    decode_records(records, codecs, args.out, _bar, count)


def _roundtrip(args: argparse.Namespace, count: Count) -> None:
    from aromni_jax.codecs.transcode import round_trip_files
    from aromni_jax.store import write_json

    files, codecs = _open_media(args, args.out)
    figures = round_trip_files(files, codecs, args.out, _bar, count)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "figures.json", {"codec": args.codec, **{str(kind): row for kind, row in figures.items()}})
    for kind, summary in figures.items():
        print(f"{kind}: {_line(summary)}")


def _report(args: argparse.Namespace, count: Count) -> None:
    from aromni_jax.evaluation.codec_report import write_codec_report

    files, codecs = _open_media(args, None)
    write_codec_report(args.out, files, codecs, name=args.codec, bar=_bar, count=count, shown=args.shown)


def _open_media(args: argparse.Namespace, out: pathlib.Path | None) -> tuple[list[MediaFile], Codecs]:
    """The media of the inputs, and the codecs that they need."""
    from aromni_jax.codecs import media_files
    from aromni_jax.codecs.file_codec import kinds_at, load_file_codec

    kinds = kinds_at(args.codec)
    files, passed = media_files.media(media_files.find(args.inputs, out), kinds)
    names = " or ".join(media_files.NAMES[kind] for kind in kinds)
    if not files:
        raise UserError(f"no {names} file in {_words(args.inputs)}; check the path")
    if passed:
        _say(f"passed over, for they are no {names} files: {_words([row.path for row in passed])}")
    used: dict[Kind, Any] = {
        kind: load_file_codec(args.codec, kind) for kind in kinds if any(file.kind == kind for file in files)
    }
    return files, used


def _line(summary: Mapping[str, Any]) -> str:
    parts = [text.format(summary[name]) for name, text in _FIGURES.items() if name in summary]
    use = f"{summary['codes_used']} of {summary['codes']} codes used (perplexity {summary['perplexity']:g})"
    return ", ".join([f"{summary['files']} done", *parts, use])


def _words(paths: Sequence[pathlib.Path]) -> str:
    return ", ".join(map(str, paths[:3])) + (" ..." if len(paths) > 3 else "")


def _bar(total: int, what: str) -> tqdm.tqdm:
    from aromni_jax.prepare.media import progress_bar

    return progress_bar(total, f"{what} files", shown=total > 0)


def _say(line: str) -> None:
    """One line on stderr, above the bar if there is one; a file's name may hold line ends."""
    import tqdm

    tqdm.tqdm.write(" ".join(line.split()), file=sys.stderr)
