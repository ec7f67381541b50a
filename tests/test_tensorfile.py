"""safetensors files: what the library writes is read, what is written the library reads, what is broken is named."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.errors import UserError
from aromni_jax.tensorfile import TensorFile, TensorWriter

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(kind) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")]
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b/c": np.array(7, np.int64), "e": np.zeros((0, 3), "f2")}


def write(path, arrays, **metadata):
    with TensorWriter(path, {name: (a.shape, a.dtype) for name, a in arrays.items()}, metadata) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return writer.sha256


def read(path):
    file = TensorFile(path)
    return {name: file.read(name) for name in file.tensors}


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=5))
def test_the_library_and_we_read_each_other(tmp_path_factory, shapes):
    folder = tmp_path_factory.mktemp("tensors")
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.integers(0, 2, shape).astype(dtype) for i, (dtype, shape) in enumerate(shapes)}
    write(folder / "ours", arrays)
    safetensors.numpy.save_file(arrays, folder / "theirs")
    for found in (safetensors.numpy.load_file(folder / "ours"), read(folder / "theirs"), read(folder / "ours")):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_bfloat16_and_metadata_and_hash(tmp_path):
    array = np.arange(5).astype(BF16)
    digest = write(tmp_path / "x", {"w": array}, format="pt")
    assert digest == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    file = TensorFile(tmp_path / "x")
    assert file.tensors["w"] == ((5,), BF16)
    np.testing.assert_array_equal(file.read("w"), array)
    opened = safetensors.safe_open(tmp_path / "x", framework="flax")
    assert opened.metadata() == {"format": "pt"}
    np.testing.assert_array_equal(np.asarray(opened.get_tensor("w")), array)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_file_that_is_cut_off(tmp_path, keep):
    write(tmp_path / "x", ARRAYS)
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole[:keep])
    with pytest.raises(UserError, match=r"x: .*cut off.*fetch it again") as caught:
        TensorFile(tmp_path / "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json", "header cannot be read"),
        (b"[1, 2]", "header cannot be read"),
        (b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', "F99"),
        (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}', "tensor a of shape .* does not fit"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}', "tensor a of shape"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-8, -4]}}', "tensor a of shape"),
        (b'{"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}', "cut off at .* in tensor a"),
    ],
)
def test_a_header_that_lies(tmp_path, header, message):
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(UserError, match=message):
        TensorFile(tmp_path / "x")


def test_a_header_of_terabytes_is_not_allocated(tmp_path):
    (tmp_path / "x").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="cut off in its header"):
        TensorFile(tmp_path / "x")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        TensorFile(tmp_path / "x")


def test_the_header_is_padded_as_the_format_asks(tmp_path):
    write(tmp_path / "x", {"w": np.zeros(1, np.float32)})
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and json.loads(data[8 : 8 + length])
