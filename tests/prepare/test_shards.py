"""The reference's JSONL shards as a data set."""

import json

import numpy as np
import pytest

from aromni_jax.cli.main import main
from aromni_jax.config import DataConfig, LossConfig
from aromni_jax.data import batches
from aromni_jax.errors import UserError
from aromni_jax.prepare import prepare_shards
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.aromni()


def write_shards(folder, count=40, bad=()):
    rng = np.random.default_rng(0)
    for shard in range(2):
        lines = []
        for i in range(count):
            tokens = [V.bos, *rng.integers(V.text.start, V.text.stop, rng.integers(5, 60)).tolist(), V.eos]
            task = ("speech_to_text", "text_to_text")[i % 2]
            lines.append(json.dumps({"discrete_code": tokens, "task": task, "response": tokens[-4:-1], "id": i}))
        for line in bad if shard else ():
            lines.insert(3, line)
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return folder


def test_shards_become_batches(tmp_path):
    manifest = prepare_shards(
        write_shards(tmp_path), tmp_path / "data", vocabulary=V, sequence_length=128, held_out_every=10
    )
    assert {task: part.examples for task, part in manifest.splits["train"].items()} == {
        "speech_to_text": 36,
        "text_to_text": 36,
    }
    assert manifest.figures("test")["examples"] == 8
    assert manifest.figures("train")["packing"]["packed"] > 0.9
    config = DataConfig(path=str(tmp_path / "data"), sequence_length=128, batch_size=4)
    batch = next(batches(config, LossConfig(response_weights={"speech_to_text": 2.0}), V))
    assert set(np.unique(batch.loss_weights)) == {0.0, 1.0, 2.0}
    assert prepare_shards(
        tmp_path, tmp_path / "data", vocabulary=V, sequence_length=128, held_out_every=10
    ) == manifest  # fmt: skip


def test_a_bad_line_stops_or_is_counted(tmp_path):
    write_shards(tmp_path, bad=['{"discrete_code": [1], "task": "asr"}', "{"])
    with pytest.raises(UserError, match=r"1.jsonl:4: is no JSON record"):
        prepare_shards(tmp_path, tmp_path / "data", vocabulary=V)
    assert not (tmp_path / "data").exists()
    manifest = prepare_shards(tmp_path, tmp_path / "data", vocabulary=V, on_bad_record="skip")
    assert manifest.statistics["bad_records"] == 2
    assert [reason.split(": ")[0] for reason in manifest.statistics["first_bad_records"]] == [
        f"{tmp_path}/1.jsonl:4",
        f"{tmp_path}/1.jsonl:5",
    ]


def test_nothing_but_bad_lines(tmp_path):
    (tmp_path / "x.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"no record to keep \(1 bad\)"):
        prepare_shards(tmp_path / "x.jsonl", tmp_path / "data", vocabulary=V, on_bad_record="skip")


def test_the_command(tmp_path, capsys):
    write_shards(tmp_path)
    words = ["prepare", str(tmp_path), "--out", str(tmp_path / "data"), "--sequence-length", "128"]
    assert main(words) == 0
    assert "train: 80 examples" in capsys.readouterr().out
    assert main(["prepare", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")]) == 1
    assert "no such file, or a folder without *.jsonl" in capsys.readouterr().err
