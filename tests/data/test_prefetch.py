"""Waiting for data: who is slow is named, who hangs ends the run."""

import logging
import pathlib
import threading
import time

import pytest

from aromni_jax.data import reading, slowest_file
from aromni_jax.data.prefetch import Prefetch
from aromni_jax.errors import UserError

ROWS = pathlib.Path("data/train.rows.array_record")


@pytest.fixture
def storage():
    """`items(...)` yields numbers; number 2 comes when the event is set."""
    answers = threading.Event()

    def items():
        for number in range(4):
            with reading.noted(ROWS, f"{ROWS} record {number}"):
                if number == 2:
                    answers.wait()
            yield number

    yield items, answers
    answers.set()


def test_a_hung_reader_ends_the_wait_with_its_name(storage):
    items, answers = storage
    ahead = Prefetch(items(), 2, timeout=0.3)
    assert [next(ahead), next(ahead)] == [0, 1]
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"no data for 0 s: {ROWS} record 2 is being read for 0 s; data.timeout_secon"):
        next(ahead)
    assert 0.3 <= time.monotonic() - start < 5
    answers.set()  # asked again, it waits again: nothing is lost
    assert list(ahead) == [2, 3]


def test_a_slow_reader_is_told_of_and_waited_for(storage, monkeypatch, caplog):
    items, answers = storage
    monkeypatch.setattr(reading, "_NOTICE_SECONDS", 0.1)
    threading.Timer(0.5, answers.set).start()
    slowest_file()
    with caplog.at_level(logging.WARNING):
        assert list(Prefetch(items(), 2, timeout=60)) == [0, 1, 2, 3]
    told = [record.message for record in caplog.records]
    assert 1 <= len(told) <= 3, "after 0.1, 0.2 and 0.4 seconds"
    assert told[0].startswith("waiting for data, 0 s so far: data/train.rows.array_record record 2 is being read for")
    name, seconds = slowest_file()
    assert name == str(ROWS) and seconds > 0.3
    assert slowest_file() is None


def test_opening_is_reading_too(storage):
    answers = storage[1]

    def opened():
        with reading.noted(ROWS):
            answers.wait()
        yield 0

    with pytest.raises(UserError, match=r"rows.array_record \(being opened\) is being read"):
        next(Prefetch(opened(), 1, timeout=0.1))


def test_without_a_limit_nothing_is_said(storage, monkeypatch, caplog):
    items, answers = storage
    monkeypatch.setattr(reading, "_NOTICE_SECONDS", 0.1)
    threading.Timer(0.3, answers.set).start()
    assert list(Prefetch(items(), 1)) == [0, 1, 2, 3] and not caplog.records
