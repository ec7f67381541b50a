"""JSON that somebody has edited: one value of it is another, of any type, or is not there."""

import copy

from hypothesis import strategies as st

GONE = object()
VALUES = (None, True, 0, -1, 3, 10**30, 0.5, float("nan"), "", "3", "x", [], [1], ["x"], [[]], {}, {"x": 1}, {"x": {}})


def places(values, at=()):
    """The path of every value inside, and of the whole."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def put(values, place, value):
    """A copy with another value at that place; GONE leaves it out."""
    if not place:
        return None if value is GONE else value
    changed = copy.deepcopy(values)
    *parents, last = place
    node = changed
    for key in parents:
        node = node[key]
    if value is GONE:
        del node[last]
    else:
        node[last] = value
    return changed


def edits(values):
    """Strategy: (place, the values with another one there)."""
    return st.tuples(st.sampled_from(places(values)), st.sampled_from((*VALUES, GONE))).map(
        lambda drawn: (drawn[0], put(values, *drawn))
    )
