import numpy as np
import pytest

from ar_t2i.data.permutation import permuted, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 192, 1000, 65_537])
def test_each_number_comes_once_wherever_one_begins(size):
    whole = permuted(np.arange(size), size, (1, 2))
    assert sorted(whole.tolist()) == list(range(size))
    part = np.arange(size)[size // 3 : size // 3 + 7]
    np.testing.assert_array_equal(permuted(part, size, (1, 2)), whole[part])


def test_it_looks_like_chance():
    """Means over keys of what a random permutation gives: place of a number, neighbours, fixed points."""
    size, keys = 96, 2000
    found = np.stack([permuted(np.arange(size), size, (7, key)) for key in range(keys)])
    deviation = (size**2 / 12 / keys) ** 0.5
    assert np.abs(found.mean(0) - (size - 1) / 2).max() < 5 * deviation
    assert abs((found == np.arange(size)).sum(1).mean() - 1) < 5 / keys**0.5
    assert abs((np.diff(found, axis=1) == 1).sum(1).mean() - (size - 1) / size) < 5 / keys**0.5
    pairs = np.bincount(found[:, 0] * size + found[:, 1], minlength=size**2).reshape(size, size)
    expected = keys / (size * (size - 1))
    off = pairs[~np.eye(size, dtype=bool)]
    assert abs(((off - expected) ** 2 / expected).mean() - 1) < 0.1, "chi square of the first two"


def test_numbers_are_spread_evenly():
    numbers = uniform(np.arange(100_000) % 1000, np.arange(100_000) // 1000, 3)
    assert 0 <= numbers.min() and numbers.max() < 1
    counts = np.histogram(numbers, 100, (0, 1))[0]
    assert abs(((counts - 1000) ** 2 / 1000).mean() - 1) < 0.5
    assert not np.array_equal(numbers, uniform(np.arange(100_000) % 1000, np.arange(100_000) // 1000, 4))
    by_row = numbers.reshape(100, 1000)
    assert abs(np.corrcoef(by_row[0], by_row[1])[0, 1]) < 0.15
