"""The windows of a plan: each sample as often as its weight says, best fit, the same whatever is asked first; and the
order without a table behind them, which is a permutation for every size and key, and a random one."""

import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.data.plan import Plan, WeightedShards, key_of, pack_best_fit, permuted, shuffled_shards

LENGTHS = st.lists(st.integers(1, 130), max_size=200)
SHARD_SIZES = st.lists(st.integers(0, 25), min_size=1, max_size=6)


def naive_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Free room of each bin, by looking at every bin for every item."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(capacity - length)
    return rooms


@given(LENGTHS)
def test_packing_equals_its_naive_twin(lengths: list[int]) -> None:
    bins = pack_best_fit(np.array(lengths, dtype=np.int64), 130)
    assert sorted(i for row in bins for i in row) == list(range(len(lengths)))
    rooms = [130 - sum(lengths[i] for i in row) for row in bins]
    assert sorted(rooms) == sorted(naive_best_fit(lengths, 130))


def test_an_item_too_long_for_a_bin_is_refused() -> None:
    with pytest.raises(ValueError, match="an item of 11 does not fit a bin of 10"):
        pack_best_fit(np.array([3, 11]), 10)


@st.composite
def plans(draw: st.DrawFn) -> Callable[[], Plan]:
    """Makes the same plan again and again, of one to three sources in small shards."""
    weights = [Fraction(1), Fraction(1, 2), Fraction(1, 3), Fraction(2), Fraction(7, 10)]
    sources = [
        WeightedShards(
            starts=np.cumsum([0, *draw(st.lists(st.integers(0, 25), min_size=1, max_size=6))]), weight=weight
        )
        for weight in draw(st.lists(st.sampled_from(weights), min_size=1, max_size=3))
    ]
    total = sum(source.size for source in sources)
    lengths = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 130, total)
    options: dict[str, Any] = {
        "seed": draw(st.integers(0, 5)),
        "row_tokens": draw(st.sampled_from([60, 100, 130])),
        "window": draw(st.sampled_from([1, 16, 32, 1000])),
        "shuffle": draw(st.booleans()),
        "shuffle_shards": draw(st.sampled_from([None, 1, 2, 4])),
    }
    return lambda: Plan(sources, lambda numbers: lengths[numbers], **options)


def seen_in(plan: Plan, epoch: int) -> list[int]:
    """Samples of an epoch, those left out included."""
    return [n for window in plan.windows(epoch) for n in (*window.samples.tolist(), *window.too_long.tolist())]


@given(plans())
def test_an_epoch_sees_each_source_as_often_as_its_weight_says(make: Callable[[], Plan]) -> None:
    plan = make()
    counts = Counter(n for epoch in range(6) for n in seen_in(plan, epoch))
    first = 0
    for source in plan.sources:
        times = [counts[n] for n in range(first, first + source.size)]
        passes = 6 * source.weight
        assert all(math.floor(passes) <= n <= math.ceil(passes) for n in times)
        assert sum(times) == math.floor(passes * source.size)
        first += source.size


@given(plans(), st.integers(0, 3))
def test_weight_1_is_exactly_once(make: Callable[[], Plan], epoch: int) -> None:
    plan = make()
    plan = Plan(
        [WeightedShards(starts=source.starts) for source in plan.sources],
        plan.lengths_of,
        seed=plan.seed,
        row_tokens=plan.row_tokens,
        window=plan.window_samples,
        shuffle_shards=plan.shuffle_shards,
    )
    assert sorted(seen_in(plan, epoch)) == list(range(len(plan)))
    for window in plan.windows(epoch):
        rows = [window.row(r) for r in range(window.num_rows)]
        assert all(0 < plan.lengths_of(row).sum() <= plan.row_tokens for row in rows)
        assert (plan.lengths_of(window.too_long) > plan.row_tokens).all()


@given(plans(), st.integers(0, 2), st.randoms())
def test_a_window_is_the_same_whatever_is_asked_first(make: Callable[[], Plan], epoch: int, random: Random) -> None:
    order = list(range(make().num_windows(epoch)))
    in_turn, shuffled = make(), make()
    expected = [in_turn.window(epoch, number) for number in order]
    random.shuffle(order)
    for number in order:
        window = shuffled.window(epoch, number)
        assert window.samples.tolist() == expected[number].samples.tolist()
        assert window.starts.tolist() == expected[number].starts.tolist()


@pytest.mark.parametrize("group", [1, 3])
def test_a_group_of_shards_is_finished_before_the_next(group: int) -> None:
    """So that a cache of as many shards reads each of them once."""
    starts = np.arange(0, 130, 10)
    plan = Plan(
        [WeightedShards(starts=starts)],
        lambda n: np.ones_like(n),
        seed=0,
        row_tokens=1,
        window=10,
        shuffle_shards=group,
    )
    shards = [{int(n) // 10 for n in window.samples} for window in plan.windows(0)]
    blocks = [set.union(*shards[i : i + group]) for i in range(0, 12, group)]
    assert all(len(block) == group for block in blocks)
    assert len(set.union(*blocks)) == 12
    assert group == 1 or any(len(window) > 1 for window in shards)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = Plan([WeightedShards(starts=np.array([0, 89]))], lambda n: n + 1, seed=seed, row_tokens=100)
        return plan.window(epoch, 0).samples.tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_sources_share_rows() -> None:
    plan = Plan([WeightedShards(starts=np.array([0, 50]))] * 2, lambda n: np.full(len(n), 10), seed=0, row_tokens=100)
    window = plan.window(0, 0)
    mixed = [len({int(n) // 50 for n in window.row(r)}) for r in range(window.num_rows)]
    assert mixed.count(2) > window.num_rows / 2


def test_rows_are_well_filled() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.6, 20_000), 30, 2048).astype(int)
    plan = Plan([WeightedShards(starts=np.array([0, 20_000]))], lambda n: lengths[n], seed=0, row_tokens=2048)
    assert lengths.sum() / (plan.num_rows(0) * 2048) > 0.98


def test_an_empty_corpus_has_no_rows() -> None:
    plan = Plan([WeightedShards(starts=np.array([0]))], lambda n: n, seed=0, row_tokens=10)
    assert (plan.num_windows(0), plan.num_rows(0)) == (0, 0)


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
