"""The stateless order: a permutation for every size and key, and a random one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.data.order import key_of, permuted, shuffled_shards


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_it_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


@given(st.integers(1, 10**12), st.integers(0, 9), st.data())
def test_a_place_is_known_without_the_others(size: int, key: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9)))
    together = permuted(places, size, key)
    assert [int(permuted(places[i : i + 1], size, key)[0]) for i in range(len(places))] == together.tolist()
    assert ((together >= 0) & (together < size)).all()
    assert len(set(together.tolist())) == len(set(places.tolist()))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.sampled_from([None, 1, 2, 5]), st.integers(0, 9))
def test_samples_of_shards_are_a_permutation(sizes: list[int], group: int | None, key: int) -> None:
    starts = np.cumsum([0, *sizes])
    if starts[-1]:
        shuffled = shuffled_shards(np.arange(starts[-1]), starts, group, key)
        assert sorted(shuffled.tolist()) == list(range(starts[-1]))


def test_the_order_on_every_machine() -> None:
    assert permuted(np.arange(10), 10, key_of(0, 1, 2)).tolist() == [6, 1, 5, 8, 9, 4, 2, 0, 7, 3]


@pytest.mark.parametrize("size", [20, 1000])
def test_every_place_is_as_likely(size: int) -> None:
    """Sample 0 over many keys: chi-squared of ten bins stays below its 99.99 % quantile, 33.7."""
    places = np.array([int(permuted(np.zeros(1, np.int64), size, key_of(0, key))[0]) for key in range(2000)])
    counts = np.bincount(places * 10 // size, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 33.7


def test_neighbours_part() -> None:
    """The correlation of places with numbers, and of neighbours, is that of a random order: within 5 / sqrt(n)."""
    shuffled = permuted(np.arange(10_000), 10_000, key_of(3))
    assert abs(np.corrcoef(np.arange(10_000), shuffled)[0, 1]) < 0.05
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.05
