"""Who gets which row of the cache, and what it holds when they have left."""

import pytest

from aromni_jax.decoding.guidance import Reads
from aromni_jax.decoding.seats import Seats, Stays
from aromni_jax.decoding.session import power_of_two


class Sitting:
    """As much of a row as counts."""

    def __init__(self, *side):
        self.side = [(Reads.NOTHING, prompt) for prompt in side]


def test_who_left_longest_ago_gives_place():
    seats = Seats(4, power_of_two)
    a, b, c, d, e, f = (Sitting() for _ in range(6))
    assert seats.take([a, b, c]) == ([0, 1, 2], [])
    seats.release(b)
    seats.release(a)
    assert seats.take([d])[0] == [3], "where nobody ever sat"
    assert seats.take([e])[0] == [1]
    seats.release(c)
    assert seats.take([f, b], wanted=[2])[0] == [2, 0], "but who wants a free one gets it"
    seats.release(f)
    assert seats.take([c], wanted=[1])[0] == [2], "and no other"


@pytest.mark.parametrize(
    ("stays", "held"), [(Stays.NOTHING, [[], []]), (Stays.OWN, [[1, 2], []]), (Stays.ALL, [[1, 2], [3]])]
)
def test_what_stays(stays, held):
    seats = Seats(1, power_of_two, stays)
    seats.add_sides(1)
    guided = Sitting([3])
    assert seats.take([guided]) == ([0], [1])
    seats.held = [[1, 2], [3]]
    seats.release(guided)
    assert seats.taken == [] and seats.held == held
    assert seats.sides.count(None) == (stays is not Stays.ALL), "free for the next one"
