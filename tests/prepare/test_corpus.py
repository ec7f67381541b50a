"""Every source through the pipeline, with the codecs of the numbers world."""

import collections
import json

import numpy as np
import pytest

from aromni_jax.codecs import TextCodec
from aromni_jax.config import DataConfig, LossConfig
from aromni_jax.data import batches, read_records
from aromni_jax.errors import UserError
from aromni_jax.prepare import prepare_corpus
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.sources import open_source
from tests.prepare import corpora

CODECS = dict.fromkeys(("text", "image", "speech"), "numbers")


def prepare(place, out, **options):
    options = {"codecs": CODECS, "sequence_length": 256, "held_out_every": 4, "progress": False, **options}
    return prepare_corpus(open_source(str(place), options.pop("columns", Columns())), out, **options)


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


@pytest.fixture(scope="module")
def folder_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    place = corpora.side_by_side(folder / "media")
    return folder / "data", prepare(place, folder / "data", items_per_shard=5), place


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
