"""Sizes that shapes are rounded up to, so that a program is compiled for few of them."""


def bucket(size: int, smallest: int = 1) -> int:
    """The next size of the series 1, 2, 3, 4, 6, 8, 12, 16 ..., from `smallest` on: at most a half of padding."""
    power = smallest
    while power < size:
        if power + power // 2 >= size and power > 1:
            return power + power // 2
        power *= 2
    return power
