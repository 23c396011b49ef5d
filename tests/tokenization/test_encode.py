"""Batches by length: each position once, within the budget."""

from hypothesis import given
from hypothesis import strategies as st

from slmkit.tokenization.encode import batches


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 200))
def test_every_position_is_in_one_batch_within_the_budget(lengths, budget):
    groups = batches(lengths, budget)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        assert group
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget


def test_like_lengths_go_together():
    assert batches([30, 10, 20], budget=40) == [[1, 2], [0]]
    assert batches([], budget=40) == []
