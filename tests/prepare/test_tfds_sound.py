"""Sound of a TFDS data set in every shape and encoding that TFDS's own serialiser writes."""

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aromni_jax.data.files import RecordWriter
from aromni_jax.errors import UserError
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.items import Reject
from aromni_jax.prepare.sources import open_source
from tests import wrong_json
from tests.prepare import corpora

LEFT = corpora.wave(0)[:4000].astype(np.int64)
STEREO = np.stack([LEFT, LEFT // 2], axis=1)
MIXED = STEREO.mean(axis=1) / 2**15


def read(folder, told, written, samples, dtype=np.int64, encoding="none"):
    """The one item of a data set whose sound has the shape `written`, and is said to have the shape `told`."""
    from tensorflow_datasets import features as kinds
    from tensorflow_datasets.core import example_serializer

    features = kinds.FeaturesDict({"speech": kinds.Tensor(shape=written, dtype=dtype, encoding=encoding)})
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    encoded = features.encode_example({"speech": samples.astype(dtype)})
    with RecordWriter(folder / "sounds-train.array_record-00000-of-00001") as writer:
        writer.write(serializer.serialize_example(encoded))
    splits = [{"name": "train", "shardLengths": ["1"]}]
    info = {"name": "sounds", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    shape = {"dimensions": [str(-1 if size is None else size) for size in told]}
    sound = {"dtype": np.dtype(dtype).name, "encoding": encoding, "sampleRate": "16000", "shape": shape}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"speech": {"audio": sound}}}}))
    (item,) = items(folder)
    return item


def items(folder):
    source = open_source(f"tfds:{folder}", Columns())
    source.state()
    return [item for part, _ in source.parts(10) for item in source.items(part)]


@pytest.mark.parametrize(
    ("shape", "samples", "expected", "options"),
    [
        ((None,), LEFT, LEFT / 2**15, {}),
        ((None, 1), LEFT[:, None], LEFT / 2**15, {}),
        ((None, 2), STEREO, MIXED, {}),
        ((None, 2), STEREO / 2**15, MIXED, {"dtype": np.float32}),
        ((4000, 2), STEREO, MIXED, {}),
        ((None, 2), STEREO, MIXED, {"encoding": "zlib", "dtype": np.int16}),
        ((None, None), STEREO, MIXED, {"encoding": "bytes", "dtype": np.int32}),
    ],
)
def test_channels_are_mixed(tmp_path, shape, samples, expected, options):
    item = read(tmp_path, shape, shape, samples, **options)
    assert item.speech.rate == 16_000 and item.speech.wave.dtype == np.float32
    np.testing.assert_allclose(item.speech.wave, expected, atol=1e-6)


def test_half_a_frame_is_told(tmp_path):
    item = read(tmp_path, (None, 2), (None,), LEFT[:3])
    assert isinstance(item, Reject) and (item.reason, item.detail) == (
        "bad sound",
        "3 numbers do not make the shape [-1, 2]",
    )


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_an_edited_description_is_read_or_told(tmp_path, data):
    read(tmp_path, (None, 2), (None, 2), STEREO)
    file = tmp_path / data.draw(st.sampled_from(["dataset_info.json", "features.json"]))
    place, edited = data.draw(wrong_json.edits(json.loads(file.read_text())))
    if place[-2:-1] == ("shardLengths",) and edited["splits"][0]["shardLengths"] == [10**30]:
        return  # it would take that long to say so
    file.write_text(json.dumps(edited))
    try:
        items(tmp_path)
    except UserError as error:
        assert re.search(re.escape(str(tmp_path)), str(error)) and "\n" not in str(error)
