"""Best-fit packing and rows: nothing lost, nothing split, every example starts anew."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aromni_jax.data.packing import MAX_SEGMENTS, best_fit, best_fit_parts, efficiency
from aromni_jax.data.rows import Row, pack
from aromni_jax.errors import UserError


@given(st.lists(st.integers(1, 40), max_size=200), st.integers(0, 3))
def test_nothing_lost_nothing_split_nothing_too_full(lengths, seed):
    lengths = np.asarray(lengths, int)
    rows = best_fit(lengths, 40, seed)
    assert sorted(np.concatenate([np.zeros(0, int), *rows]).tolist()) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= 40 for row in rows)
    # No two rows could be one: what first-fit and best-fit guarantee.
    fills = sorted(lengths[row].sum() for row in rows)
    assert len(fills) < 2 or fills[0] + fills[1] > 40


def test_parts_hold_all_examples_and_fill_rows_as_well():
    lengths = np.sort(np.random.default_rng(0).integers(1, 100, 5000))
    whole = best_fit(lengths, 256, 3)
    rows = list(best_fit_parts(lengths, 256, 3, part=1000))
    assert sorted(np.concatenate(rows).tolist()) == list(range(5000))
    assert all(lengths[row].sum() <= 256 for row in rows) and len(rows) < 1.01 * len(whole) + 5
    assert all((row % 5 == row[0] % 5).all() for row in rows)
    assert [row.tolist() for row in best_fit_parts(lengths, 256, 3, part=5000)] == [row.tolist() for row in whole]
    assert list(best_fit_parts(lengths[:0], 256)) == []


def test_a_row_takes_no_more_segments_than_a_byte_counts():
    rows = best_fit(np.ones(1000, int), 4096)
    assert max(map(len, rows)) == MAX_SEGMENTS


def test_an_example_longer_than_a_row_is_an_error():
    with pytest.raises(UserError, match=r"example 1 has 41 tokens; a row takes 1..40"):
        best_fit(np.asarray([3, 41]), 40)


def test_it_beats_padding_and_is_fast():
    lengths = np.random.default_rng(0).integers(20, 400, 200_000)
    started = time.perf_counter()
    rows = best_fit(lengths, 512)
    assert time.perf_counter() - started < 5  # 0.3 s on an idle core
    figures = efficiency(lengths, len(rows), 512)
    assert figures.packed > 0.99
    assert figures.padded_to_max < figures.padded_to_longest < 0.6


def test_efficiency_by_hand():
    figures = efficiency(np.asarray([4, 4, 2, 2]), rows=2, capacity=8, batch_size=4)
    assert (figures.packed, figures.padded_to_longest, figures.padded_to_max) == (12 / 16, 12 / 16, 12 / 32)


@settings(max_examples=30)
@given(count=st.integers(0, 40), seed=st.integers(0, 1000))
def test_rows_hold_every_record_whole(count, seed, vocabulary, make_record):
    records = [make_record(seed + i) for i in range(count)]
    found = []
    for row in pack(records, 64, vocabulary, seed):
        assert Row.from_bytes(row.to_bytes(), vocabulary).to_bytes() == row.to_bytes()
        used = int((row.segment_ids > 0).sum())
        assert (row.segment_ids[:used] > 0).all(), "padding stands at the end only"
        assert (row.tokens[used:] == vocabulary.pad).all() and not row.roles[used:].any()
        for segment in range(1, row.segment_ids.max(initial=0) + 1):
            span = row.segment_ids == segment
            assert row.roles[span][0] == 0, "the first token of an example is never predicted"
            found.append((row.tokens[span].tobytes(), int(row.task_ids[span][0])))
    wanted = [(record.tokens.tobytes(), int(row_task)) for record, row_task in ((r, _task(r)) for r in records)]
    assert sorted(found) == sorted(wanted)


def _task(record):
    from aromni_jax.vocabulary import task_id

    return task_id(record.task)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:3], "not a packed row"),
        (lambda data: b"xxxx" + data[4:], "not a packed row"),
        (lambda data: data[:-5], "the header says"),
        (lambda data: data[:4] + b"\x09" + data[5:], "row version 9"),
        (lambda data: data[:9] + b"\xff\xff" + data[11:], "id 65535 at position 0 is outside"),
        (lambda data: data[:-1] + b"\xff", "task number 255 at position 63"),
    ],
)
def test_a_damaged_row_is_named(change, message, vocabulary, make_record):
    (row,) = pack([make_record(0)], 64, vocabulary)
    with pytest.raises(UserError, match=f"^here: .*{message}"):
        Row.from_bytes(change(row.to_bytes()), vocabulary, "here")
