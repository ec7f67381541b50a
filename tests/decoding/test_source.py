"""The queue of requests: bounded, for many threads."""

import threading

import pytest

from aromni_jax.decoding import Request, RequestQueue
from aromni_jax.errors import UserError


def request(name):
    return Request(prompt_tokens=[0], id=name)


def ids(arrivals):
    return [(arrival.request.id, arrival.cancelled) for arrival in arrivals]


def test_first_come_first_served():
    queue = RequestQueue()
    for name in "abc":
        queue.submit(request(name))
    assert ids(queue.take(2, wait=True)) == [("a", False), ("b", False)]
    assert ids(queue.take(2, wait=False)) == [("c", False)]
    assert queue.take(2, wait=False) == []


def test_a_full_queue_holds_up_who_fills_it():
    queue = RequestQueue(limit=1)
    queue.submit(request("a"))
    with pytest.raises(UserError, match="request b: 1 others wait"):
        queue.submit(request("b"), timeout=0.01)
    thread = threading.Thread(target=queue.submit, args=(request("b"),))
    thread.start()
    assert ids(queue.take(5, wait=True)) == [("a", False)]
    thread.join(5)
    assert ids(queue.take(5, wait=True)) == [("b", False)]


def test_the_engine_waits_for_requests_and_for_the_end():
    queue, got = RequestQueue(), []

    def work():
        while arrivals := queue.take(1, wait=True):
            got.extend(ids(arrivals))

    thread = threading.Thread(target=work)
    thread.start()
    queue.submit(request("a"))
    queue.submit(request("b"))
    queue.close()
    thread.join(5)
    assert not thread.is_alive() and got == [("a", False), ("b", False)]
    with pytest.raises(UserError, match="the queue is closed"):
        queue.submit(request("c"))


def test_many_threads():
    queue, taken = RequestQueue(limit=3), []

    def fill(k):
        for n in range(20):
            queue.submit(request(f"{k}/{n}"))

    threads = [threading.Thread(target=fill, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    while len(taken) < 80:
        arrivals = queue.take(2, wait=True)
        assert len(arrivals) <= 2
        taken += [arrival.request.id for arrival in arrivals]
    assert sorted(taken) == sorted(f"{k}/{n}" for k in range(4) for n in range(20))
    for k in range(4):
        own = [int(name.split("/")[1]) for name in taken if name.startswith(f"{k}/")]
        assert own == sorted(own)


def test_cancel():
    queue = RequestQueue(limit=2)
    for name in "ab":
        queue.submit(request(name))
    queue.take(1, wait=True)
    queue.submit(request("c"))
    assert queue.cancel("b") and queue.cancel("a") and not queue.cancel("x")
    assert queue.stopped() == {"a"}
    queue.submit(request("d"), timeout=0)  # b has left its place
    assert ids(queue.take(0, wait=True)) == [("b", True)]
    assert ids(queue.take(2, wait=True)) == [("c", False), ("d", False)]
    queue.release("a")
    assert queue.stopped() == set() and not queue.cancel("a")


def test_ids():
    queue = RequestQueue()
    with pytest.raises(UserError, match="needs an id"):
        queue.submit(request(""))
    queue.submit(request("a"))
    for _ in range(2):
        with pytest.raises(UserError, match="request a: another one of this id is not over"):
            queue.submit(request("a"))
        queue.take(1, wait=False)
    queue.release("a")
    queue.submit(request("a"))


def test_a_queue_without_room():
    with pytest.raises(UserError, match="at least one"):
        RequestQueue(limit=0)
