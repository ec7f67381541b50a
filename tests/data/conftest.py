"""Small vocabularies, records and data sets for the tests of data/."""

import gc
import threading

import numpy as np
import pytest

from aromni_jax.data import Record
from aromni_jax.data.manifest import Manifest, write_manifest, write_split
from aromni_jax.vocabulary import TASKS, JointVocabulary

SEQUENCE = 64


@pytest.fixture(scope="session")
def vocabulary():
    return JointVocabulary.compact(text_pieces=50, image_codes=16, image_tokens=6, speech_codes=24)


@pytest.fixture(scope="session")
def make_record(vocabulary):
    """Random well-formed record: bos, text, maybe a picture, maybe speech, eos."""
    v = vocabulary

    def make(seed: int, task: str | None = None) -> Record:
        rng = np.random.default_rng(seed)
        picture = [v.boi, *rng.integers(v.image.start, v.image.stop, v.image_tokens), v.eoi]
        speech = [v.boa, *rng.integers(v.speech.start, v.speech.stop, rng.integers(1, 12)), v.eoa]
        text = rng.integers(v.text.start, v.text.stop, rng.integers(1, 20))
        answer = [[*picture], [*speech], []][rng.integers(3)]
        tokens = [v.bos, *text, v.eoh, *answer, v.eos]
        return Record(np.asarray(tokens, np.uint16), task or TASKS[seed % len(TASKS)], len(answer), f"r{seed}")

    return make


@pytest.fixture
def make_data_set(tmp_path, vocabulary, make_record):
    """Writes a data set with components "a" and "b" in splits "train" and "test"; returns its folder."""

    def make(count: int = 60, vocabulary=vocabulary, records=None):
        splits, joint = {}, {}
        for split in ("train", "test"):
            components = {
                name: records or [make_record(1000 * offset + i, TASKS[offset]) for i in range(count)]
                for offset, name in enumerate(("a", "b"))
            }
            splits[split], joint[split] = write_split(
                tmp_path, split, components, sequence_length=SEQUENCE, vocabulary=vocabulary
            )
        manifest = Manifest(
            vocabulary=vocabulary,
            codecs={"text": "0" * 16},
            sequence_length=SEQUENCE,
            request={},
            splits=splits,
            joint=joint,
        )
        write_manifest(tmp_path, manifest)
        return tmp_path

    return make


@pytest.fixture(autouse=True)
def no_thread_left():
    """A stream that a test drops must stop reading; otherwise threads of earlier tests pile up."""
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "aromni-prefetch":
            thread.join(timeout=5)
            assert not thread.is_alive()
