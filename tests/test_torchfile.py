"""PyTorch's own files: tensors come and go, anything else is refused."""

import pickle

import ml_dtypes
import numpy as np
import pytest

from aromni_jax.errors import UserError
from aromni_jax.torchfile import TorchFile, write_torch

torch = pytest.importorskip("torch")
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind_come_back(tmp_path, zipped):
    state = {
        "bf": torch.arange(6).to(torch.bfloat16).reshape(2, 3),
        "f": torch.randn(3, 2).T,  # not contiguous
        "i": torch.tensor(5),
        "none": None,
    }
    torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    file = TorchFile(tmp_path / "x.bin")
    assert file.tensors == {"bf": ((2, 3), BF16), "f": ((2, 3), np.dtype("f4")), "i": ((), np.dtype("i8"))}
    np.testing.assert_array_equal(file.read("bf").astype(int), np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(file.read("f"), state["f"].numpy())
    assert file.read("i") == 5


def test_what_is_written_torch_reads(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4).astype(BF16)}
    write_torch(tmp_path / "x.pth", {name: (a.shape, a.dtype) for name, a in arrays.items()}, arrays.items())
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    assert list(state) == ["a", "b", "rope.freqs"] and state["rope.freqs"] is None
    np.testing.assert_array_equal(state["a"].numpy(), arrays["a"])
    assert state["b"].dtype == torch.bfloat16 and state["b"].tolist() == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_the_dict_may_lie_inside(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "x.ckpt")
    assert list(TorchFile(tmp_path / "x.ckpt", inside="state_dict").tensors) == ["w"]


class _Evil:
    def __reduce__(self):
        return (print, ("this ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": torch.ones(1), "args": _Evil()}, "anything but tensors.*could run code: refused"),
        ({"w": torch.ones(1), "step": 3}, "entry step is a int, not a tensor"),
        ([torch.ones(1)], "holds a list, not a dict of tensors"),
        ({"w": torch.ones(1, dtype=torch.complex64).to_sparse()}, "tensor w has type|cannot read"),
    ],
)
def test_anything_but_tensors_is_refused(tmp_path, capsys, content, message):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(UserError, match=message) as caught:
        file = TorchFile(tmp_path / "x.bin")
        file.read("w")
    assert "x.bin" in str(caught.value) and "\n" not in str(caught.value)
    assert "this ran" not in capsys.readouterr().out


def test_a_plain_pickle_is_not_run(tmp_path, capsys):
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"w": _Evil()}))
    with pytest.raises(UserError, match=r"x\.bin: "):
        TorchFile(tmp_path / "x.bin")
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_file_that_is_cut_off(tmp_path, keep):
    torch.save({"w": torch.ones(100)}, tmp_path / "x.bin")
    data = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"x\.bin: .*fetch it again") as caught:
        TorchFile(tmp_path / "x.bin")
    assert "\n" not in str(caught.value)


def test_missing(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        TorchFile(tmp_path / "x.bin")
