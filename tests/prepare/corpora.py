"""The same few captioned pictures and transcribed sounds in every format that `aromni prepare` reads."""

import io
import json
import pathlib
import struct
import tarfile
from typing import ClassVar

import numpy as np
import soundfile
from PIL import Image

from aromni_jax.data.files import RecordFile
from aromni_jax.prepare import prepare_corpus
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.sources import open_source

RATE = 16_000
CODECS = dict.fromkeys(("text", "image", "speech"), "numbers")
CAPTIONS = [f"a picture of {word}" for word in ("one", "two", "three", "four", "five", "six", "seven")]
TRANSCRIPTS = ["twelve", "twenty one", "thirty", "forty four", "fifty"]


def prepare(place, out, **options):
    """With the codecs of the numbers world."""
    options = {"codecs": CODECS, "sequence_length": 256, "held_out_every": 4, "progress": False, **options}
    return prepare_corpus(open_source(str(place), options.pop("columns", Columns())), out, **options)


def png(number):
    """Bytes of picture `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (28, 56), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wave(number):
    """16-bit samples of sound `number`, a quarter to half a second."""
    rng = np.random.default_rng(100 + number)
    return (rng.normal(size=4000 + 800 * number) * 3000).astype(np.int16)


def wav(number):
    """Bytes of sound `number`."""
    file = io.BytesIO()
    soundfile.write(file, wave(number), RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def side_by_side(folder):
    """name.png, name.wav and name.txt in folders."""
    for kind, contents, texts in (("png", png, CAPTIONS), ("wav", wav, TRANSCRIPTS)):
        (folder / kind).mkdir(parents=True)
        for number, text in enumerate(texts):
            (folder / kind / f"{number}.{kind}").write_bytes(contents(number))
            (folder / kind / f"{number}.txt").write_text(text + "\n")
    return folder


def listed(folder):
    """Pictures in a metadata.jsonl, sounds in LJSpeech's metadata.csv."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "lj" / "wavs").mkdir(parents=True)
    for number, _ in enumerate(CAPTIONS):
        (folder / "pictures" / f"{number}.png").write_bytes(png(number))
    for number, _ in enumerate(TRANSCRIPTS):
        (folder / "lj" / "wavs" / f"{number}.wav").write_bytes(wav(number))
    rows = [{"file_name": f"{number}.png", "text": text} for number, text in enumerate(CAPTIONS)]
    (folder / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{number}|{text.upper()}|{text}\n" for number, text in enumerate(TRANSCRIPTS)]
    (folder / "lj" / "metadata.csv").write_text("".join(lines))
    return folder


def tars(folder):
    """Pictures with captions in JSON, sounds with .txt, two tars."""
    folder.mkdir(parents=True)
    for name, kind, contents, texts in (("0", "png", png, CAPTIONS), ("1", "wav", wav, TRANSCRIPTS)):
        with tarfile.open(folder / f"{name}.tar", "w") as file:
            for number, text in enumerate(texts):
                described = (
                    ("json", json.dumps({"caption": text}).encode()) if kind == "png" else ("txt", text.encode())
                )
                for suffix, data in ((kind, contents(number)), described):
                    member = tarfile.TarInfo(f"{kind}/{number}.{suffix}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
    return folder


def parquet(folder):
    """As Hugging Face writes it: the files' bytes in structs."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    for name, contents, texts in (("image", png, CAPTIONS), ("audio", wav, TRANSCRIPTS)):
        rows = [{name: {"bytes": contents(at), "path": None}, "text": text} for at, text in enumerate(texts)]
        # Columns are those of the first file, so both have both.
        rows = [{"image": None, "audio": None, **row} for row in rows]
        media = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        schema = pyarrow.schema([("image", media), ("audio", media), ("text", pyarrow.string())])
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows, schema), folder / f"{name}.parquet", row_group_size=3
        )
    return folder


def tfds(folder):
    """Prepared by TensorFlow Datasets itself; returns the folder of the data set.

    TensorFlow is not here, and TFDS's `Audio` wants it even to be declared. What lies on disk is the same for a vector
    of whole numbers, but for the description, which is set right afterwards.
    """
    import tensorflow_datasets
    from tensorflow_datasets import features as kinds

    class Pairs(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        url_infos: ClassVar = {}  # or it looks beside the code for the addresses of its downloads

        def _info(self):
            captions = kinds.Sequence({"id": np.int64, "text": kinds.Text()})
            features = {
                "image": kinds.Image(),
                "captions": captions,
                "speech": kinds.Tensor(shape=(None,), dtype=np.int64),
            }
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=kinds.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(range(5)), "val": self._generate_examples(range(5, 7))}

        def _generate_examples(self, numbers):
            for number in numbers:
                captions = [{"id": 0, "text": CAPTIONS[number]}, {"id": 1, "text": f"again {number}"}]
                yield (
                    number,
                    {"image": io.BytesIO(png(number)), "captions": captions, "speech": wave(number).astype(int)},
                )

    builder = Pairs(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare(download_config=tensorflow_datasets.download.DownloadConfig(try_download_gcs=False))
    made = pathlib.Path(str(builder.data_path))
    described = json.loads((made / "features.json").read_text())
    described["featuresDict"]["features"]["speech"] = {
        "audio": {"dtype": "int64", "encoding": "none", "sampleRate": str(RATE), "shape": {"dimensions": ["-1"]}},
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
    }
    (made / "features.json").write_text(json.dumps(described))
    return made


def media_tokens(opening, letter, codes, closing):
    """AnyGPT's marker tokens."""
    return opening + "".join(f"<{letter}{code}>" for code in codes) + closing


def anygpt(folder):
    """Its three kinds of rows, and rows that cannot be."""
    folder.mkdir(parents=True)
    heard = media_tokens("<sosp>", "🗣️", [1, 1, 1023], "<eosp>")
    answered = media_tokens("<sosp>", "🗣️", [5, 6], "<eosp>")
    seen = media_tokens("<soim>", "👀", range(8000, 8032), "<eoim>")
    said = [
        {"role": "user", "message": f"{heard} Please acknowledge the user's vocal input"},
        {"role": "assistant", "message": f"<-Ins-> hello, how are you\n <-Res-> I am fine {answered} "},
    ]
    rows = [
        {"text": "a red ring", "image": seen},
        {"text": "thirty", "speech": heard},
        {"id": 1, "conversation": [said, said]},
        {"text": "short", "image": media_tokens("<soim>", "👀", [1, 2], "<eoim>")},
        {"text": "no such code", "speech": media_tokens("<sosp>", "🗣️", [1024], "<eosp>")},
        {"text": "a tune", "music": "<somu><🎶1><eomu>"},
        {"id": 2, "conversation": [[said[0], {"role": "assistant", "message": "no shape"}]]},
    ]
    (folder / "all.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


def as_tfrecords(place):
    """Makes the files of a TFDS data set TFRecords, as most of them are."""
    for path in place.glob("*.array_record-*"):
        file = RecordFile(path)
        with open(str(path).replace("array_record", "tfrecord"), "wb") as out:
            for at in range(len(file)):
                out.write(struct.pack("<QI", len(file[at]), 0) + file[at] + bytes(4))
        path.unlink()
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
