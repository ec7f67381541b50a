"""Batches: the same stream on any number of processes, after any restart, by either way of packing."""

import dataclasses
import gc
import itertools
import json
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from aromni_jax.config import DataConfig, LossConfig
from aromni_jax.data import Batch, batches, epoch, read_records, write_records
from aromni_jax.data.files import SUFFIX
from aromni_jax.data.record import Record
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

LOSS = LossConfig(response_weights={"image_caption": 2.0}, prompt_weight=0.5)


def config_of(folder, **changes):
    return DataConfig(**{"path": str(folder), "sequence_length": 64, "batch_size": 8, "seed": 3} | changes)


def take(stream, count):
    return list(itertools.islice(stream, count))


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(vars(left).values(), vars(right).values(), strict=True))


def examples_of(batch: Batch) -> list[bytes]:
    """Every example in a batch, as the bytes of its tokens."""
    found = []
    for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        found += [tokens[segments == s].astype(np.uint16).tobytes() for s in range(1, segments.max(initial=0) + 1)]
    return found


PACKINGS = pytest.mark.parametrize("packing", ["offline", "online"])


@PACKINGS
def test_a_batch_says_what_its_rows_are(packing, make_data_set, vocabulary):
    folder = make_data_set()
    known = {
        r.tokens.tobytes(): r
        for name in "ab"
        for r in read_records(folder / f"train/{name}.records{SUFFIX}", vocabulary)
    }
    for batch in take(batches(config_of(folder, packing=packing), LOSS, vocabulary), 5):
        kinds = {name: (value.dtype, value.shape) for name, value in vars(batch).items()}
        assert kinds == {
            name: (np.dtype(np.float32 if name == "loss_weights" else np.int32), (8, 64)) for name in kinds
        }
        assert jax.tree.structure(batch).num_leaves == 5
        for b, segments in enumerate(batch.segment_ids):
            padding = segments == 0
            assert (batch.tokens[b][padding] == vocabulary.pad).all()
            for field in (batch.loss_weights, batch.positions, batch.task_ids):
                assert not field[b][padding].any()
            for segment in range(1, segments.max() + 1):
                span = segments == segment
                record = known[batch.tokens[b][span].astype(np.uint16).tobytes()]
                assert batch.positions[b][span].tolist() == list(range(len(record)))
                weights = batch.loss_weights[b][span]
                weight = 2.0 if record.task == "image_caption" else 1.0
                k = record.response_length
                answer = weights[len(record) - 1 - k : -1] if k else weights[:0]
                assert weights[0] == 0 and weights[-1] == 1 and (answer == weight).all()
                assert (weights[1 : len(record) - 1 - k] == 0.5).all() if k else (weights[1:] == 1).all()


@pytest.mark.parametrize("mixture", [{}, {"a": 3, "b": 1}])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_offline_the_stream_does_not_depend_on_the_processes(processes, mixture, make_data_set, vocabulary):
    config = config_of(make_data_set(), mixture=mixture)
    alone = take(batches(config, LOSS, vocabulary), 30)
    streams = [
        take(batches(config, LOSS, vocabulary, process_index=p, process_count=processes), 30) for p in range(processes)
    ]
    for whole, parts in zip(alone, zip(*streams, strict=True), strict=True):
        assert same(whole, jax.tree.map(lambda *rows: np.concatenate(rows), *parts))
    assert not same(alone[0], alone[1])


def test_offline_a_start_at_step_n_skips_n_batches(make_data_set, vocabulary):
    config = config_of(make_data_set())
    alone = take(batches(config, LOSS, vocabulary), 25)
    for step in (1, 7, 24):
        assert same(next(batches(config, LOSS, vocabulary, start_step=step)), alone[step])
    stream = batches(config, LOSS, vocabulary)
    take(stream, 3)
    assert stream.get_state() == {"step": 3}
    stream.set_state({"step": 20})
    assert same(next(stream), alone[20]) and stream.get_state() == {"step": 21}
    far = next(batches(config, LOSS, vocabulary, start_step=10**9))  # at once: nothing is read on the way
    assert far.tokens.shape == (8, 64)


def test_offline_every_epoch_shows_every_example_once_in_a_new_order(make_data_set, vocabulary):
    config = config_of(make_data_set(count=64), batch_size=1)
    rows = sum(1 for _ in epoch(config, LOSS, vocabulary, split="train"))
    wanted = sorted(e for batch in epoch(config, LOSS, vocabulary, split="train") for e in examples_of(batch))
    stream = batches(config, LOSS, vocabulary)
    first, second = take(stream, rows), take(stream, rows)
    for shown in (first, second):
        assert sorted(e for batch in shown for e in examples_of(batch)) == wanted
    assert not all(same(a, b) for a, b in zip(first, second, strict=True))
    other = take(batches(dataclasses.replace(config, seed=4), LOSS, vocabulary), rows)
    assert not all(same(a, b) for a, b in zip(first, other, strict=True))


@PACKINGS
def test_a_mixture_follows_its_weights(packing, make_data_set, vocabulary):
    config = config_of(make_data_set(), mixture={"a": 3, "b": 1}, packing=packing)
    shown = take(batches(config, LOSS, vocabulary), 100)
    real = np.concatenate([batch.segment_ids > 0 for batch in shown])
    tasks = np.concatenate([batch.task_ids for batch in shown])
    assert (tasks[real] == 0).mean() == pytest.approx(0.75, abs=0.06)


def test_online_resumes_from_its_saved_state(make_data_set, vocabulary):
    config = config_of(make_data_set(), packing="online")
    stream = batches(config, LOSS, vocabulary)
    take(stream, 13)
    state = json.loads(json.dumps(stream.get_state()))
    rest = take(stream, 20)
    again = batches(config, LOSS, vocabulary)
    again.set_state(state)
    resumed = take(again, 20)
    assert all(same(a, b) for a, b in zip(rest, resumed, strict=True))
    skipped = take(batches(config, LOSS, vocabulary, start_step=13), 20)
    assert all(same(a, b) for a, b in zip(rest, skipped, strict=True))


def test_online_two_processes_share_the_examples(make_data_set, vocabulary):
    config = config_of(make_data_set(), packing="online")
    left, right = (batches(config, LOSS, vocabulary, process_index=p, process_count=2) for p in range(2))
    first, second = next(left), next(right)
    assert first.tokens.shape == (4, 64)
    assert not set(examples_of(first)) & set(examples_of(second))


def test_a_state_of_the_other_kind_is_refused(make_data_set, vocabulary):
    folder = make_data_set()
    offline = batches(config_of(folder), LOSS, vocabulary)
    online = batches(config_of(folder, packing="online"), LOSS, vocabulary)
    with pytest.raises(UserError, match=r"set data.packing=online"):
        offline.set_state(online.get_state())
    with pytest.raises(UserError, match=r"set data.packing=offline"):
        online.set_state(offline.get_state())
    with pytest.raises(UserError, match="is that of 2 processes, this run has 1"):
        online.set_state(online.get_state() | {"processes": 2})


def test_an_epoch_is_split_over_processes_and_padded(make_data_set, vocabulary):
    config = config_of(make_data_set())
    alone = list(epoch(config, LOSS, vocabulary))
    parts = [list(epoch(config, LOSS, vocabulary, process_index=p, process_count=2)) for p in range(2)]
    for whole, *halves in zip(alone, *parts, strict=True):
        assert same(whole, jax.tree.map(lambda *rows: np.concatenate(rows), *halves))
    assert not alone[-1].loss_weights[-1].any(), "the data set was chosen to leave room in the last batch"


def test_an_epoch_of_online_packing_has_rows_of_its_own_length(make_data_set, vocabulary):
    folder = make_data_set()
    stored = [example for batch in epoch(config_of(folder), LOSS, vocabulary) for example in examples_of(batch)]
    online = config_of(folder, packing="online", sequence_length=80)
    afresh = list(epoch(online, LOSS, vocabulary))
    assert all(batch.tokens.shape == (8, 80) for batch in afresh)
    assert sorted(example for batch in afresh for example in examples_of(batch)) == sorted(stored)


@PACKINGS
def test_bad_records_stop_or_are_skipped(packing, make_data_set, vocabulary, make_record, caplog):
    v = vocabulary
    cut = Record(np.asarray([v.bos, v.boi, v.image.start, v.eoi, v.size if packing == "offline" else v.eos], np.uint16),
                 "text_to_image", 0, "cut")  # fmt: skip
    records = [make_record(i) for i in range(30)] + [cut]
    folder = make_data_set(records=records)
    config = config_of(folder, packing=packing)
    with pytest.raises(UserError, match=r"\.array_record record \d+.*(outside 0\.\.|holds 1 codes)"):
        take(batches(config, LOSS, vocabulary), 40)
    stream = batches(dataclasses.replace(config, on_bad_record="skip"), LOSS, vocabulary)
    shown = take(stream, 40)
    assert len(stream.bad.reasons) == 2  # once for each component
    assert not any(cut.tokens.tobytes() in examples_of(batch) for batch in shown)
    assert sum("skipped: " in message for message in caplog.messages) == 2


@PACKINGS
def test_all_records_bad_is_an_error_even_when_skipping(packing, make_data_set, vocabulary):
    bad = Record(np.asarray([vocabulary.size], np.uint16), "chat", 0, "x")
    config = config_of(make_data_set(records=[bad]), packing=packing, on_bad_record="skip")
    with pytest.raises(UserError, match=r"all \d records are bad"):
        take(batches(config, LOSS, vocabulary), 10)


def test_a_damaged_or_missing_file_is_named(make_data_set, vocabulary):
    folder = make_data_set()
    rows = folder / f"train.rows{SUFFIX}"
    rows.write_bytes(rows.read_bytes()[:100])
    with pytest.raises(UserError, match=r"train.rows.array_record: cut off"):
        batches(config_of(folder), LOSS, vocabulary)
    rows.unlink()
    with pytest.raises(UserError, match=r"train.rows.array_record: no such file"):
        batches(config_of(folder), LOSS, vocabulary)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 128}, "rows of 64 tokens, but data.sequence_length is 128"),
        ({"mixture": {"c": 1.0}}, "no component 'c': it has a, b"),
        ({"batch_size": 9}, "data.batch_size 9 is no multiple of 2 processes"),
        ({"path": "/nowhere"}, "no such file"),
        ({"packing": "online", "sequence_length": 16}, "a row takes 16: raise data.sequence_length"),
    ],
)
def test_wrong_settings_are_named(changes, message, make_data_set, vocabulary):
    with pytest.raises(UserError, match=message):
        take(batches(config_of(make_data_set(), **changes), LOSS, vocabulary, process_count=2), 4)


def test_another_vocabulary_is_refused_before_the_first_step(make_data_set):
    other = JointVocabulary.compact(text_pieces=51, image_codes=16, image_tokens=6, speech_codes=24)
    with pytest.raises(UserError, match="the data was made with another vocabulary"):
        batches(config_of(make_data_set()), LOSS, other)
    with pytest.raises(UserError, match="the data was made with another vocabulary"):
        next(epoch(config_of(make_data_set()), LOSS, other))


def test_an_empty_component(make_data_set, vocabulary):
    folder = make_data_set()
    write_records(folder / f"train/a.records{SUFFIX}", [])
    with pytest.raises(UserError, match="a is empty"):
        batches(config_of(folder, mixture={"a": 1.0}, packing="online"), LOSS, vocabulary)


def test_absl_flags_need_not_be_parsed_and_the_process_ends(make_data_set, vocabulary):
    """Grain reads absl flags in its threads; a plain script must run, and end with batches still being read ahead."""
    folder = make_data_set()
    code = (
        "import sys, json\n"
        "from aromni_jax.config import DataConfig, LossConfig\n"
        "from aromni_jax.data import batches, read_manifest\n"
        "v = read_manifest(sys.argv[1]).vocabulary\n"
        "for packing in ('offline', 'online'):\n"
        "    config = DataConfig(path=sys.argv[1], sequence_length=64, batch_size=4, packing=packing)\n"
        "    print(next(batches(config, LossConfig(), v)).tokens.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["(4, 64)", "(4, 64)"]


@PACKINGS
def test_a_dropped_stream_ends_its_thread(packing, make_data_set, vocabulary):
    stream = batches(config_of(make_data_set(), packing=packing), LOSS, vocabulary)
    next(stream)
    (worker,) = (thread for thread in threading.enumerate() if thread.name == "aromni-prefetch" and thread.is_alive())
    del stream
    gc.collect()
    worker.join(timeout=5)
    assert not worker.is_alive()
