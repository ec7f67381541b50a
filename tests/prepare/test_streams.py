"""Sources that hold ids already: the reference's shards and its tuning data, AnyGPT's marker tokens."""

import json

import numpy as np
import pytest

from aromni_jax.cli.main import main
from aromni_jax.codecs import TextCodec
from aromni_jax.config import DataConfig, LossConfig
from aromni_jax.data import batches, read_records
from aromni_jax.data.weights import Role, token_roles
from aromni_jax.errors import UserError
from aromni_jax.prepare import prepare_corpus
from aromni_jax.prepare.columns import Columns
from aromni_jax.prepare.examples import ExampleBuilder, Recipe
from aromni_jax.prepare.items import Reject
from aromni_jax.prepare.sources import open_source
from aromni_jax.vocabulary import JointVocabulary
from tests.prepare import corpora

V = JointVocabulary.aromni()


def prepare(place, out, **options):
    options = {"vocabulary": V, "sequence_length": 128, "held_out_every": 10, "progress": False, **options}
    return prepare_corpus(open_source(str(place), Columns()), out, **options)


def of_task(out, manifest, task):
    return [
        record
        for components in manifest.splits.values()
        for name, part in components.items()
        if name == task
        for record in read_records(out / part.records, manifest.vocabulary)
    ]


def rejects(out):
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


def write_shards(folder, count=40, bad=()):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
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


def test_pretraining_shards_become_batches(tmp_path):
    out = tmp_path / "data"
    manifest = prepare(write_shards(tmp_path / "ids"), out, items_per_shard=30)
    assert manifest.figures("train")["examples"] + manifest.figures("test")["examples"] == 80
    assert 0 < manifest.figures("test")["examples"] < 30
    assert {len(of_task(out, manifest, task)) for task in ("speech_to_text", "text_to_text")} == {40}
    assert {record.response_length for record in of_task(out, manifest, "text_to_text")} == {3}
    config = DataConfig(path=str(out), sequence_length=128, batch_size=4)
    batch = next(batches(config, LossConfig(response_weights={"speech_to_text": 2.0}), V))
    assert set(np.unique(batch.loss_weights)) == {0.0, 1.0, 2.0}


def made_of(lines, folder):
    """What becomes of lines, without a pipeline."""
    (folder / "x.jsonl").write_text("\n".join(lines) + "\n")
    source = open_source(str(folder / "x.jsonl"), Columns())
    builder = ExampleBuilder(Recipe("aromni", (), 2048, 0, 0), V)
    parts = [part for part, _ in source.parts(2)]
    return [
        item if isinstance(item, Reject) else builder.of_stream(item) for part in parts for item in source.items(part)
    ]


def test_fields_of_pretraining_lines(tmp_path):
    picture = [V.bos, V.boi, *range(V.image.start, V.image.start + 1024), V.eoi, V.eos]
    rows = [
        {"discrete_code": picture, "task": "image_caption"},
        {"discrete_code": [V.bos] * 1299, "task": "speech_to_text", "response": None},
        {"discrete_code": [V.bos, V.text.start, V.eos], "task": "text_to_text", "response": [9] * 50, "id": 7},
    ]
    made = made_of([json.dumps(row) for row in rows], tmp_path)
    assert [len(record) for _, record in made] == [1028, 1299, 3]
    assert [record.response_length for _, record in made] == [0, 0, 3]  # never more than there are
    assert [record.id for _, record in made] == [*(f"{tmp_path}/x.jsonl:line {n}" for n in (1, 2)), "7"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "not a JSON object"),
        ('{"task": "chat"}', "no field 'discrete_code'"),
        ('{"discrete_code": [1], "task": ""}', "unknown task ''"),
        ('{"discrete_code": [1, 65536], "task": "chat"}', "id 65536 at position 1 is outside 0..65535"),
        ('{"discrete_code": [-1], "task": "chat"}', "id -1 at position 0"),
        ('{"discrete_code": [1.5], "task": "chat"}', "flat list of integers"),
        ('{"discrete_code": [[1]], "task": "chat"}', "flat list of integers"),
        ('{"discrete_code": 7, "task": "chat"}', "is no list"),
        ('{"discrete_code": [8197, 4, 8196], "task": "chat"}', "image span at position 0 holds 1 codes, not 1024"),
    ],
)
def test_a_bad_line_is_told_and_the_next_one_read(line, reason, tmp_path):
    good = json.dumps({"discrete_code": [0, 2], "task": "chat"})
    first, bad, last = made_of([good, line, good], tmp_path)
    assert reason in f"{bad.reason} {bad.detail}" and bad.record == "line 2"
    assert len(first[1]) == len(last[1]) == 2


BAD_LINES = (
    '{"discrete_code": [1], "task": "asr"}',
    "{",
    json.dumps({"discrete_code": [], "task": "text_to_text"}),
    json.dumps({"discrete_code": [V.bos] + [V.text.start] * 1299, "task": "text_to_text"}),
    '{"task": "text_to_text"}',
)


def test_bad_lines_are_counted_or_stop(tmp_path):
    place = write_shards(tmp_path / "ids", bad=BAD_LINES)
    manifest = prepare(place, tmp_path / "data")
    told = rejects(tmp_path / "data")
    assert {row["reason"]: row["record"] for row in told} == {
        "missing field": "line 4",
        "too long": "line 5",
        "no tokens": "line 6",
        "not a JSON object": "line 7",
        "bad record": "line 8",
    }
    assert {row["file"] for row in told} == {str(place / "1.jsonl")} and manifest.statistics["rejected"] == 5
    assert manifest.statistics["rejects"]["too long"] == 1
    with pytest.raises(UserError, match=r"1.jsonl \(line 4\): missing field \(no field 'discrete_code'\)"):
        prepare(place, tmp_path / "other", on_bad_record="stop")
    assert not (tmp_path / "other").exists()


def test_a_small_set_has_something_held_out(tmp_path):
    manifest = prepare(write_shards(tmp_path / "ids", count=2), tmp_path / "data", held_out_every=10**6)
    assert [manifest.figures(split)["examples"] for split in ("train", "test")] == [3, 1]


def test_nothing_but_bad_lines(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"discrete_code": [1], "task": "asr"}\n')
    with pytest.raises(
        UserError, match=r"no record to train on: 1 rejected; the first one: .*x.jsonl \(line 1\): bad record"
    ):
        prepare(tmp_path / "x.jsonl", tmp_path / "data")


def dialog(*answers):
    """Ids and labels of a chat in the shape of SPEC 2.4, with loss on the answers."""
    ids, labels = [V.bos], [-100]
    for answer in answers:
        prompt = [V.text.start, V.boa, V.speech.start, V.eoa, V.eoh, V.text.start + 1]
        told = [V.ins, *answer, V.res, *answer, V.eom]
        ids += prompt + told
        labels += [-100] * len(prompt) + told
    return ids, labels


def test_tuning_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    text = V.text.start + 7
    good = [dialog([text]), dialog([text, text + 1], [text + 2])]
    ids, labels = dialog([text])
    wrong = [(ids, [-100, *ids[1:4], *[-100] * (len(ids) - 4)]), (ids, labels[:-1]), (ids, [-100] * len(ids))]
    rows = [{"input_ids": a, "labels": b} for a, b in [*good, *wrong, dialog([text] * 200)]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "tuning.parquet")
    manifest = prepare(tmp_path / "tuning.parquet", tmp_path / "data", held_out_every=0)
    made = of_task(tmp_path / "data", manifest, "chat")
    for record, (ids, labels) in zip(made, good, strict=True):
        assert record.tokens.tolist() == ids
        roles = token_roles(record.tokens, record.response_length, V) % 4
        assert (roles == Role.RESPONSE).tolist() == [label != -100 for label in labels]
    assert [row["reason"] for row in rejects(tmp_path / "data")] == [
        "labels are not the answers",
        "bad record",
        "no label",
        "too long",
    ]


def test_anygpt_has_a_vocabulary_of_its_own(tmp_path):
    out, codecs = tmp_path / "data", {"text": "numbers"}
    options = {"codecs": codecs, "vocabulary": None, "held_out_every": 0, "sequence_length": 512}
    manifest = prepare(corpora.anygpt(tmp_path / "ids"), out, **options)
    v, codec = manifest.vocabulary, TextCodec.load("numbers")
    assert (len(v.image), v.image_tokens, len(v.speech)) == (8192, 32, 1024)

    def text(tokens):
        return codec.decode(v.text_pieces(tokens[v.text.mask(tokens)]).tolist())

    (caption,) = of_task(out, manifest, "image_caption")
    tokens = caption.tokens.astype(int)
    assert v.image_codes(tokens[v.image.mask(tokens)]).tolist() == list(range(8000, 8032))
    assert text(tokens) == "describe a red ring"
    (heard,) = of_task(out, manifest, "speech_to_text")
    tokens = heard.tokens.astype(int)
    assert v.speech_codes(tokens[v.speech.mask(tokens)]).tolist() == [1, 1, 1023]
    (chat,) = of_task(out, manifest, "chat")
    tokens = chat.tokens.astype(int)
    assert [int(t) for t in tokens if t in v.markers.values()] == [
        v.bos, *([v.boa, v.eoa, v.eoh, v.ins, v.res, v.boa, v.eoa, v.eom] * 2)
    ]  # fmt: skip
    assert "hello, how are you" in text(tokens) and "I am fine" in text(tokens)
    assert [row["reason"] for row in rejects(out)] == ["bad codes", "bad codes", "music", "bad conversation"]


def test_anygpt_cannot_be_mapped_to_the_official_layout(tmp_path):
    codecs = dict.fromkeys(("text", "image", "speech"), "text_tokenizer.json")
    with pytest.raises(UserError, match="cannot be mapped to the official layout"):
        prepare(corpora.anygpt(tmp_path / "ids"), tmp_path / "data", codecs=codecs)


def test_the_command(tmp_path, capsys):
    words = ["prepare", str(write_shards(tmp_path / "ids", bad=BAD_LINES[:2])), "--out", str(tmp_path / "data")]
    assert main([*words, "--sequence-length", "128"]) == 0
    out = capsys.readouterr().out
    assert "train: " in out and "2 rejected (bad record 1, not a JSON object 1); rejects.jsonl names them" in out
    assert "nothing is held out" not in out
    assert main([*words[:2], "--out", str(tmp_path / "all"), "--held-out-every", "0"]) == 0
    assert "nothing is held out, and training evaluates on that" in capsys.readouterr().out
    assert main(["prepare", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")]) == 1
    assert "nowhere: no such file or folder; give a folder of pictures" in capsys.readouterr().err


def test_all_held_out_is_told(tmp_path):
    with pytest.raises(UserError, match="all are held out; give --held-out-every a larger number"):
        prepare(write_shards(tmp_path / "shards", 3), tmp_path / "data", held_out_every=1)
