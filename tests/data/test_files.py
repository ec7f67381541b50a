"""Records on disk: round trips, and one clear line for every kind of damage."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.data import Record, read_records, write_records
from aromni_jax.data.files import Concatenated, RecordFile, RecordWriter
from aromni_jax.data.manifest import NAME, read_manifest
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import TASKS


@given(
    st.lists(st.integers(0, 65535), max_size=300),
    st.sampled_from(TASKS),
    st.integers(0, 2**32 - 1),
    st.text(max_size=40),
)
def test_a_record_survives_its_bytes(tokens, task, response_length, name):
    record = Record(np.asarray(tokens, np.uint16), task, response_length, name.encode(errors="ignore").decode())
    again = Record.from_bytes(record.to_bytes())
    assert again == record
    assert (again.task, again.response_length, again.id) == (record.task, record.response_length, record.id)


def test_a_file_gives_back_what_was_written(tmp_path, vocabulary, make_record):
    records = [make_record(i) for i in range(50)]
    write_records(tmp_path / "x.array_record", records)
    assert list(read_records(tmp_path / "x.array_record", vocabulary)) == records
    assert Record.from_bytes(RecordFile(tmp_path / "x.array_record")[17]) == records[17]


def test_many_records_are_read_in_the_order_asked_for(tmp_path, make_record):
    records = [make_record(i) for i in range(30)]
    for name, part in (("a", records[:12]), ("b", []), ("c", records[12:])):
        write_records(tmp_path / name, part)
    files = Concatenated([RecordFile(tmp_path / name) for name in "abc"])
    order = np.random.default_rng(0).permutation(30).tolist() + [3, 3]
    assert [Record.from_bytes(data) for data in files.read(order)] == [records[i] for i in order]
    assert files.read([]) == []
    with pytest.raises(IndexError):
        files.read([30])


def _bad(change):
    """A picture record of the test vocabulary with one thing changed."""

    def make(v):
        picture = [v.boi, *range(v.image.start, v.image.start + v.image_tokens), v.eoi]
        fields = {"tokens": [v.bos, v.text.start, v.eoh, *picture, v.eos], "task": "text_to_image", "response": 8}
        change(fields, v)
        return Record(np.asarray(fields["tokens"], np.uint16), fields["task"], fields["response"], "odd")

    return make


BAD = {
    "outside 0..": _bad(lambda f, v: f["tokens"].__setitem__(1, v.size)),
    "image span at position 3 holds 5 codes, not 6": _bad(lambda f, v: f["tokens"].pop(5)),
    "not closed by eoi": _bad(lambda f, v: f["tokens"].remove(v.eoi)),
    "stands outside an image or speech span": _bad(lambda f, v: f["tokens"].insert(1, v.speech.start)),
    "has no tokens": _bad(lambda f, v: f.update(tokens=[], response=0)),
    r"response_length 99 is not in 0..12": _bad(lambda f, v: f.update(response=99)),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_record_is_named_by_file_number_and_reason(reason, tmp_path, vocabulary, make_record):
    path = tmp_path / "x.array_record"
    write_records(path, [make_record(0), BAD[reason](vocabulary)])
    with pytest.raises(UserError, match=reason) as caught:
        list(read_records(path, vocabulary))
    assert str(caught.value).startswith(f"{path} record 1 (odd): ")
    assert "\n" not in str(caught.value)


def test_an_unknown_task_is_refused_on_both_sides(vocabulary, make_record):
    record = make_record(0)
    with pytest.raises(UserError, match=r"unknown task 'asr': use one of image_caption"):
        Record(record.tokens, "asr").to_bytes()
    with pytest.raises(UserError, match=r"x.jsonl:3: unknown task 'asr'"):
        Record(record.tokens, "asr").check(vocabulary, "x.jsonl:3")
    data = bytearray(record.to_bytes())
    data[5] = 77
    with pytest.raises(UserError, match="here: unknown task number 77"):
        Record.from_bytes(bytes(data), "here")


def test_missing_truncated_and_foreign_files(tmp_path, vocabulary, make_record):
    path = tmp_path / "x.array_record"
    with pytest.raises(UserError, match=r"x.array_record: no such file; make it with `aromni prepare`"):
        RecordFile(path)
    write_records(path, [make_record(i) for i in range(2000)])
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"RIFF" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x.array_record: cut off or no ArrayRecord file"):
            RecordFile(path)
    damaged = bytearray(whole)
    for at in range(len(whole) // 8, len(whole) // 8 + 40):  # the index is behind, and what lies between is empty
        damaged[at] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"x.array_record record \d+: damaged \(Corrupted"):
        list(read_records(path, vocabulary))


def test_a_record_file_with_other_records_is_no_token_file(tmp_path, vocabulary):
    with RecordWriter(tmp_path / "x.array_record") as writer:
        writer.write(b"something else altogether")
    with pytest.raises(UserError, match="record 0: not a token record"):
        list(read_records(tmp_path / "x.array_record", vocabulary))


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """The limit on file size makes the system fail a write, as a full disk does."""
    code = (
        "import os, resource, signal, sys\n"
        "import numpy as np\n"
        "from aromni_jax.data import Record, write_records\n"
        "from aromni_jax.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "tokens = np.random.default_rng(0).integers(0, 65536, 1000).astype(np.uint16)\n"
        "try:\n"
        "    write_records(sys.argv[1], [Record(tokens, 'chat', 0, str(i)) for i in range(1000)])\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    target = tmp_path / "x.array_record"
    done = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"cannot write {target}: File too large"
    assert os.listdir(tmp_path) == []


def test_an_error_while_writing_keeps_the_old_file(tmp_path, vocabulary, make_record):
    path = tmp_path / "x.array_record"
    write_records(path, [make_record(0)])
    with pytest.raises(ZeroDivisionError), RecordWriter(path) as writer:
        writer.write(b"half")
        raise ZeroDivisionError
    assert list(read_records(path, vocabulary)) == [make_record(0)]
    assert os.listdir(tmp_path) == ["x.array_record"]


def test_writing_into_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere/x.array_record"):
        write_records(tmp_path / "nowhere" / "x.array_record", [])


def test_manifest_round_trip_and_damage(make_data_set, vocabulary):
    folder = make_data_set()
    manifest = read_manifest(folder)
    assert manifest.vocabulary == vocabulary
    part = manifest.splits["train"]["a"]
    assert part.examples == 60 and part.tokens == sum(part.tokens_by_modality.values())
    assert part.tasks == {"image_caption": {"examples": 60, "tokens": part.tokens}}
    assert part.efficiency["packed"] == part.tokens / (part.row_count * manifest.sequence_length)
    values = json.loads((folder / NAME).read_text())
    assert values["vocabulary_fingerprint"] == vocabulary.fingerprint()
    for text in (
        "{",
        "[]",
        "{}",
        json.dumps(values | {"version": 9}),
        json.dumps(values | {"new": 1}),
        json.dumps(values | {"vocabulary_fingerprint": "0"}),
    ):
        (folder / NAME).write_text(text)
        with pytest.raises(UserError, match=r"manifest.json: "):
            read_manifest(folder)
    (folder / NAME).unlink()
    with pytest.raises(UserError, match="no prepared data set"):
        read_manifest(folder)
