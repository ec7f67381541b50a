"""Every source through the pipeline, with the codecs of the numbers world."""

import collections
import json
import os
import pathlib
import sys
import tarfile

import pytest

from aromni_jax.codecs import TextCodec
from aromni_jax.config import DataConfig, LossConfig
from aromni_jax.data import batches, read_records
from tests.prepare import corpora
from tests.prepare.corpora import prepare


def records(out, manifest):
    """(split, record) of all."""
    for split, components in manifest.splits.items():
        for part in components.values():
            yield from ((split, record) for record in read_records(out / part.records, manifest.vocabulary))


def pairs(out, manifest):
    """(task, text, codes of the medium) of all examples with a prompt."""
    v, codec, found = manifest.vocabulary, TextCodec.load("numbers"), collections.Counter()
    for _, record in records(out, manifest):
        tokens = record.tokens.astype(int)
        media = tokens[v.image.mask(tokens) | v.speech.mask(tokens)]
        text = codec.decode(v.text_pieces(tokens[v.text.mask(tokens)]).tolist())
        if text:
            found[record.task, text, tuple(media.tolist())] += 1
    return found


def test_a_folder_becomes_examples_of_four_tasks(folder_set):
    out, manifest, _ = folder_set
    counts = collections.Counter(record.task for _, record in records(out, manifest))
    assert counts == {"image_caption": 7, "text_to_image": 7, "speech_to_text": 5, "text_to_speech": 5}
    said = {text for task, text, _ in pairs(out, manifest) if task == "speech_to_text"}
    assert said == {f"transcribe {text}" for text in corpora.TRANSCRIPTS}
    assert manifest.statistics["pictures"] == 7 and manifest.statistics["rejected"] == 0
    assert (out / "rejects.jsonl").read_text() == ""
    assert not (out.parent / ".data.shards").exists()
    sides = collections.defaultdict(set)
    for split, record in records(out, manifest):
        sides[record.id.split("/", 1)[1]].add(split)
    assert all(len(splits) == 1 for splits in sides.values()) and {"test"} in sides.values()


def test_training_reads_it(folder_set):
    out, manifest, _ = folder_set
    config = DataConfig(path=str(out), sequence_length=256, batch_size=2)
    batch = next(batches(config, LossConfig(), manifest.vocabulary))
    assert batch.tokens.shape == (2, 256) and batch.loss_weights.any()


@pytest.mark.parametrize("make", [corpora.listed, corpora.tars, corpora.parquet], ids=lambda make: make.__name__)
def test_every_format_gives_the_same_examples(folder_set, tmp_path, make):
    out, manifest, _ = folder_set
    other = prepare(make(tmp_path / "media"), tmp_path / "data")
    assert pairs(tmp_path / "data", other) and other.statistics["rejected"] == 0
    # Which tenth of the pictures has no prompt depends on their names.
    with_prompt = [
        found.keys() - {pair for pair in found if pair[0] == "text_to_image"}
        for found in (pairs(out, manifest), pairs(tmp_path / "data", other))
    ]
    assert with_prompt[0] == with_prompt[1]


def test_tfds_needs_no_tensorflow(tmp_path, folder_set):
    place = corpora.tfds(tmp_path / "tfds")
    manifest = prepare(f"tfds:{place}", tmp_path / "data", tasks=["image_caption", "speech_to_text"])
    found = pairs(tmp_path / "data", manifest)
    captions = {text for task, text, _ in found if task == "image_caption"}
    assert captions == {f"describe {text}" for n in range(7) for text in (corpora.CAPTIONS[n], f"again {n}")}
    # The pictures are those of the folder, so are their codes.
    expected = {pair for pair in pairs(*folder_set[:2]) if pair[0] == "image_caption"}
    assert expected <= found.keys()
    heard = {(text, codes) for task, text, codes in found if task == "speech_to_text" and "picture" in text}
    sounds = {codes for task, _, codes in pairs(*folder_set[:2]) if task == "speech_to_text"}
    assert {codes for _, codes in heard} >= sounds
    assert {record.id.split("/")[1] for split, record in records(tmp_path / "data", manifest) if split == "test"} == {
        "val"
    }
    assert "tensorflow" not in sys.modules
    corpora.as_tfrecords(place)
    as_records = prepare(f"tfds:{tmp_path / 'tfds'}", tmp_path / "other", tasks=["image_caption", "speech_to_text"])
    assert pairs(tmp_path / "other", as_records) == found
    with open(next(place.glob("*train*")), "r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 100)
    cut = prepare(f"tfds:{place}", tmp_path / "cut", tasks=["image_caption"])
    assert cut.statistics["rejects"] == {"unreadable file": 1} and cut.statistics["pictures"] == 6


def test_what_cannot_be_used_is_told(tmp_path):
    place = corpora.side_by_side(tmp_path / "media")
    (place / "png" / "0.txt").unlink()
    (place / "png" / "1.txt").write_text(" \n")
    (place / "png" / "2.png").write_bytes(corpora.png(2)[:200])
    (place / "wav" / "3.wav").write_bytes(corpora.wav(3)[:44])
    (place / "wav" / "4.txt").write_text("fifty " * 200)
    (place / "wav" / "5.wav").write_bytes(corpora.wav(40) * 1)
    (place / "wav" / "5.txt").write_bytes(b"\xff\xfe\xfd")
    with tarfile.open(tmp_path / "cut.tar", "w") as file:
        file.add(place, "media")
    manifest = prepare(place, tmp_path / "data", held_out_every=0)
    told = {}
    for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines():
        row = json.loads(line)
        told.setdefault((pathlib.Path(row["file"]).name, row["record"]), set()).add(row["reason"])
    assert told == {
        ("0.png", "png/0"): {"no text"},
        ("1.png", "png/1"): {"no text"},
        ("2.png", "png/2"): {"bad picture"},
        ("3.wav", "wav/3"): {"bad sound"},
        ("4.wav", "wav/4"): {"too long"},
        ("5.txt", "wav/5"): {"bad text"},
    }
    assert manifest.statistics["rejects"] == {
        "bad picture": 1, "bad sound": 1, "bad text": 1, "no text": 2, "too long": 2
    }  # fmt: skip
    data = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2 // 512 * 512 + 100])
    manifest = prepare(tmp_path / "cut.tar", tmp_path / "cut")
    assert manifest.statistics["rejects"]["unreadable tar"] == 1
