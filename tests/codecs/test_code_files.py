"""Files of codes: what is written comes back, and every bad line is named."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.codecs.code_files import CodeRecord, read_codes, write_codes
from aromni_jax.errors import UserError

GOOD = {"source": "a/b.flac", "kind": "speech", "codec": "0123", "samples": 9, "codes": [1, 2]}


@settings(max_examples=30)
@given(
    st.sampled_from(["a.png", "a/ü b.flac", "…/'\".wav", "new\nline.wav", "no\udcfftext.wav"]),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9),
    st.integers(0, 99),
    st.dictionaries(st.sampled_from("ab"), st.floats(-99, 99)),
)
def test_what_is_written_comes_back(tmp_path_factory, source, codes, samples, figures):
    path = tmp_path_factory.mktemp("codes") / "x"
    record = CodeRecord(source, "speech", "0123", np.array(codes, np.int32), samples, figures)
    write_codes(path, record)
    ((_, back),) = read_codes(path)
    assert (back.source, back.kind, back.codec, back.samples, back.figures) == (
        source, "speech", "0123", samples, figures,
    )  # fmt: skip
    assert back.codes.dtype == np.int32 and back.codes.tolist() == codes and back.mark == record.mark


def test_files_can_be_joined(tmp_path):
    for name in ("a", "b"):
        write_codes(tmp_path / name, CodeRecord(f"{name}.png", "image", "0123", np.array([3], np.int32)))
    (tmp_path / "all").write_bytes(b"\n".join((tmp_path / name).read_bytes() for name in ("a", "b")))
    assert [record.source for _, record in read_codes(tmp_path / "all")] == ["a.png", "b.png"]


def test_the_mark_changes_with_codec_codes_and_length():
    codes = np.array([1, 2], np.int32)
    records = [("0123", codes, 9), ("0124", codes, 9), ("0123", codes[::-1], 9), ("0123", codes, 8)]
    assert len({CodeRecord("a", "speech", codec, row, samples).mark for codec, row, samples in records}) == 4


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "list indices"),
        ("3", "not subscriptable"),
        (GOOD | {"kind": "smell"}, "neither image nor speech"),
        (GOOD | {"source": "../b.wav"}, "does not lie below"),
        (GOOD | {"source": "/b.wav"}, "does not lie below"),
        (GOOD | {"source": ""}, "does not lie below"),
        (GOOD | {"source": "a\\..\\..\\b.wav"}, "does not lie below"),
        (GOOD | {"source": 3}, "does not lie below"),
        (GOOD | {"codes": []}, "flat list"),
        (GOOD | {"codes": [[1]]}, "flat list"),
        (GOOD | {"codes": [[1], 2]}, "inhomogeneous"),
        (GOOD | {"codes": [1.5]}, "flat list"),
        (GOOD | {"codes": ["1"]}, "flat list"),
        (GOOD | {"codes": [2**40]}, "too large"),
        (GOOD | {"codes": [2**70]}, "flat list"),
        (GOOD | {"samples": "9"}, "wrong type"),
        (GOOD | {"figures": {"psnr_db": "high"}}, "no number"),
        (GOOD | {"figures": {"psnr_db": float("nan")}}, "no number"),
        ({key: value for key, value in GOOD.items() if key != "codec"}, "no 'codec'"),
    ],
)
def test_bad_lines_are_named_and_the_others_read(tmp_path, line, reason):
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "x").write_text(f"{json.dumps(GOOD)}\n{text}\n{json.dumps(GOOD)}\n")
    first, (_, error), last = read_codes(tmp_path / "x")
    assert first[1].source == last[1].source == "a/b.flac"
    assert isinstance(error, UserError) and "x, line 2: " in str(error) and reason in str(error)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe\x00"])
def test_files_that_hold_no_lines(tmp_path, content):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="x "):
        list(read_codes(tmp_path / "x"))
