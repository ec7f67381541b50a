"""Sizes of shapes."""

from aromni_jax.buckets import bucket


def test_bucket_sizes():
    sizes = [bucket(size) for size in range(1, 65)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(size <= found < 2 * size for size, found in zip(range(1, 65), sizes, strict=True))
    assert bucket(3, 16) == 16
