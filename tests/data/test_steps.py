"""Steps of a plan: exactly once in any world, the same from anywhere, cursors that are believed only where they fit."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from data.test_plan import plans, seen_in
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slmkit.data.plan import Plan, WeightedShards
from slmkit.data.steps import Steps
from slmkit.world import BatchSplit

LENGTHS = np.random.default_rng(0).integers(1, 60, 300)


def make_steps(global_rows: int = 4, **change: Any) -> Steps:
    options = {"seed": 0, "row_tokens": 100, "window": 32, **change}
    return Steps(
        Plan([WeightedShards(starts=np.array([0, 300]))], lambda n: LENGTHS[n], **options), global_rows, "name"
    )


@given(plans(), st.integers(0, 2), st.sampled_from([1, 2, 8, 48, 1024]), st.sampled_from([1, 2]), st.integers(0, 8))
def test_exactly_once_on_any_number_of_ranks_and_workers(
    make: Callable[[], Plan], epoch: int, world_size: int, accumulation: int, num_workers: int
) -> None:
    """A worker takes every n-th micro-batch of its rank."""
    plan = make()
    split = BatchSplit(global_rows=2 * world_size * accumulation, micro_rows=2, world_size=world_size)
    steps = [step for step in Steps(plan, split.global_rows).walk(epochs=epoch + 1) if step.epoch == epoch]
    assert [step.number for step in steps] == list(range(len(steps)))
    assert all(len(step.rows) == split.global_rows for step in steps)
    seen: list[int] = []
    for rank in range(world_size):
        micros = [[step.rows[i] for i in split.rows(rank, m)] for step in steps for m in range(accumulation)]
        for worker in range(max(1, num_workers)):
            for rows in micros[worker :: max(1, num_workers)]:
                seen += [n for row in rows for n in row.tolist()]
    left_out = [n for window in plan.windows(epoch) for n in window.too_long.tolist()]
    assert sorted(seen + left_out) == sorted(seen_in(plan, epoch))


@pytest.mark.parametrize("world_size", [1, 2, 8, 64])
def test_a_step_holds_the_same_rows_in_every_world(world_size: int) -> None:
    split = BatchSplit(global_rows=64, micro_rows=1, world_size=world_size)
    step = next(make_steps(64).walk(done_steps=1))
    order = [i for rank in range(world_size) for m in range(split.accumulation) for i in split.rows(rank, m)]
    assert order == list(range(64))
    assert repr(step) == repr(next(itertools.islice(make_steps(64).walk(), 1, None)))


@settings(deadline=None, max_examples=15)
@given(plans(), st.integers(1, 20), st.data())
def test_with_a_cursor_as_without(make: Callable[[], Plan], global_rows: int, data: st.DataObject) -> None:
    assume(any(make().num_rows(epoch) for epoch in range(2)))
    steps = Steps(make(), global_rows, "name")
    walked = list(itertools.islice(steps.walk(), 30))
    done = data.draw(st.integers(0, 20))
    saved = data.draw(st.integers(0, 30))
    cursor = json.loads(json.dumps(steps.cursor(saved)))
    for given_cursor in (cursor, None):
        again = Steps(make(), global_rows, "name").walk(done, given_cursor)
        assert repr(list(itertools.islice(again, 10))) == repr(walked[done : done + 10])


def test_a_cursor_spares_the_windows_before() -> None:
    steps = make_steps()
    walked = list(itertools.islice(steps.walk(), 60))
    epoch = walked[50].epoch
    cursor = steps.cursor(50)
    assert cursor["epoch"] == epoch == 2
    later = make_steps()
    assert repr(next(later.walk(50, cursor))) == repr(walked[50])
    assert later.plan.window.cache_info().misses <= 2
    alone = make_steps()
    assert repr(next(alone.walk(50))) == repr(walked[50])
    assert alone.plan.window.cache_info().misses >= 10


@pytest.mark.parametrize(
    "change",
    [{"first_row": 1}, {"window": 99}, {"epoch_start": 7}, {"rows": 3}, {"seal": "0"}, {"more": 1}, {"epoch": "x"}],
)
def test_a_changed_cursor_is_not_believed(change: dict[str, Any]) -> None:
    steps = make_steps()
    expected = list(itertools.islice(steps.walk(), 60))[50]
    assert repr(next(make_steps().walk(50, {**steps.cursor(50), **change}))) == repr(expected)


@pytest.mark.parametrize("cursor", [{}, [], "x", None])
def test_what_is_no_cursor_is_not_believed(cursor: Any) -> None:
    assert repr(next(make_steps().walk(5, cursor))) == repr(next(make_steps().walk(5)))


def test_a_cursor_of_another_plan_is_not_believed() -> None:
    steps = make_steps()
    list(itertools.islice(steps.walk(), 60))
    cursor = steps.cursor(50)
    for other in (make_steps(global_rows=3), Steps(make_steps(row_tokens=90).plan, 4, "other")):
        fresh = Steps(other.plan, other.global_rows, other.name)
        assert repr(next(fresh.walk(50, cursor))) == repr(next(other.walk(50)))


def test_the_last_step_lacks_rows_and_no_samples() -> None:
    steps = list(make_steps(16).walk(epochs=1))
    assert all(len(row) for step in steps[:-1] for row in step.rows)
    assert any(not len(row) for row in steps[-1].rows)
    assert sum(len(row) for step in steps for row in step.rows) == 300


def test_positions_are_epoch_and_step() -> None:
    steps = make_steps(16)
    in_epoch = len(list(steps.walk(epochs=1)))
    assert [(s.epoch, s.number) for s in itertools.islice(steps.walk(in_epoch - 1), 2)] == [(0, in_epoch - 1), (1, 0)]
