"""A data set whose every example is a number that can be read off its tokens."""

import numpy as np

from aromni_jax.data import Manifest, Record
from aromni_jax.data.manifest import write_manifest, write_split
from tests.training.small_run import ROW, VOCABULARY

COUNT = 960  # four in a row: 240 rows, 30 batches an epoch
_DIGITS = len(VOCABULARY.text)


def write_numbers(folder):
    """The data set under `folder`."""
    v = VOCABULARY
    records = []
    for number in range(COUNT):
        digits = [v.text.start + number // _DIGITS**place % _DIGITS for place in (2, 1, 0)]
        tokens = np.asarray([v.bos, *digits, v.eoh, digits[-1], v.eos], np.uint16)
        records.append(Record(tokens, "text_to_text", 1, str(number)))
    written = {
        split: write_split(folder, split, {"all": part}, sequence_length=ROW, vocabulary=v)
        for split, part in (("train", records), ("test", records[:32]))
    }
    splits, joint = ({split: parts[at] for split, parts in written.items()} for at in (0, 1))
    manifest = Manifest(vocabulary=v, codecs={}, sequence_length=ROW, request={}, splits=splits, joint=joint)
    write_manifest(folder, manifest)
    return folder


def numbers(batch):
    """The examples of a batch, row by row."""
    found = []
    for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            digits = tokens[segments == segment][1:4].astype(int) - VOCABULARY.text.start
            found.append(int(digits @ [_DIGITS**2, _DIGITS, 1]))
    return found
