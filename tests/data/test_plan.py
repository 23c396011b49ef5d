"""The plan of an epoch: exactly once, whatever the world; best fit; the same for everyone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.data.plan import pack_best_fit, plan_epoch
from slmkit.world import BatchSplit

LENGTHS = st.lists(st.integers(1, 130), max_size=200)


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


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 5), st.integers(0, 3), st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([1, 2]))
def test_exactly_once_on_any_number_of_ranks(
    lengths: list[int], seed: int, epoch: int, world_size: int, accumulation: int
) -> None:
    plan = plan_epoch(np.array(lengths), seed=seed, epoch=epoch, row_tokens=100, window=32)
    split = BatchSplit(global_rows=2 * world_size * accumulation, micro_rows=2, world_size=world_size)
    seen = []
    for step in range(plan.num_steps(split.global_rows)):
        rows = plan.step_rows(step, split.global_rows)
        assert len(rows) == split.global_rows
        for rank in range(world_size):
            for micro in range(accumulation):
                for i in split.rows(rank, micro):
                    assert sum(lengths[s] for s in rows[i]) <= 100
                    seen += rows[i].tolist()
    fits = [i for i, length in enumerate(lengths) if length <= 100]
    assert sorted(seen) == fits
    assert plan.too_long.tolist() == [i for i, length in enumerate(lengths) if length > 100]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_a_step_holds_the_same_rows_in_every_world(world_size: int) -> None:
    plan = plan_epoch(np.arange(1, 90), seed=1, epoch=2, row_tokens=100)
    split = BatchSplit(global_rows=8, micro_rows=1, world_size=world_size)
    rows = plan.step_rows(3, 8)
    order = [i for rank in range(world_size) for m in range(split.accumulation) for i in split.rows(rank, m)]
    assert [rows[i].tolist() for i in order] == [plan.row(24 + i).tolist() for i in range(8)]


def test_epochs_differ_and_repeat() -> None:
    lengths = np.arange(1, 90)

    def order(seed: int, epoch: int) -> list[int]:
        return plan_epoch(lengths, seed=seed, epoch=epoch, row_tokens=100).samples.tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_rows_are_well_filled() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.5, 0.6, 20_000), 30, 2048).astype(int)
    plan = plan_epoch(lengths, seed=0, epoch=0, row_tokens=2048)
    assert lengths.sum() / (plan.num_rows * 2048) > 0.98


def test_an_empty_corpus_has_no_steps() -> None:
    plan = plan_epoch(np.zeros(0, dtype=np.int64), seed=0, epoch=0, row_tokens=10)
    assert (plan.num_rows, plan.num_steps(4)) == (0, 0)
