"""The learning rate as a function of the step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.train.schedule import learning_rate


def test_warmup_reaches_the_rate_in_its_last_step() -> None:
    rates = [learning_rate(step, lr=1.0, total_steps=100, num_warmup=4) for step in range(5)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_its_share() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, lr=2.0, total_steps=110, num_warmup=10, min_lr_share=0.1)

    assert rate(60) == pytest.approx(2.0 * 0.55)
    assert rate(35) == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert rate(110) == pytest.approx(0.2)


def test_constant_stays() -> None:
    assert learning_rate(999, lr=0.5, total_steps=1000, num_warmup=3, kind="constant") == 0.5


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no schedule 'square'"):
        learning_rate(0, lr=1.0, total_steps=1, num_warmup=0, kind="square")


@given(
    total=st.integers(1, 500),
    warmup=st.integers(0, 600),
    share=st.floats(0, 1),
    kind=st.sampled_from(["cosine", "constant"]),
)
def test_rates_rise_then_fall_and_stay_within_bounds(total: int, warmup: int, share: float, kind: str) -> None:
    rates = [
        learning_rate(step, lr=1.0, total_steps=total, num_warmup=warmup, kind=kind, min_lr_share=share)
        for step in range(total)
    ]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
