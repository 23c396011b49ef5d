"""What a start says of a run that goes on with other options."""

import json
import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.config.load import from_dict
from slmkit.config.train import OptimizerConfig, ScheduleConfig, TrainConfig
from slmkit.train.changes import changes_since, rate_of, written_by


def config(**options: Any) -> TrainConfig:
    values = {"run_dir": "r", "base": "b", "deepspeed": "d", "data": {"corpus": "c"}, "steps": 100}
    return from_dict(TrainConfig, {**values, **options})


def changes(before: TrainConfig, now: TrainConfig, *, total: int = 100, done: int = 50) -> list[str]:
    state = json.loads(json.dumps(written_by(before, before.steps or 0)))
    return changes_since(state, now, done_steps=done, total_steps=total)


def test_nothing_is_said_of_an_equal_run() -> None:
    assert changes(config(), config()) == []
    assert changes_since({}, config(), done_steps=50, total_steps=100) == []  # a checkpoint of an earlier version


def test_every_changed_option_is_said() -> None:
    sources = [{"path": "a"}, {"path": "b", "weight": 0.5}]
    before = config(data={"sources": sources}, optimizer={"weight_decay": 0.1})
    after = config(data={"sources": [sources[0], {"path": "b", "weight": 2.0}]}, keep_last=7, hang_timeout_sec=60)
    said = changes(before, after)
    assert "data.sources[1].weight was 0.5, and is 2.0" in said
    assert "optimizer.weight_decay was 0.1, and is 0.0" in said
    assert "keep_last was 2, and is 7" in said
    assert "hang_timeout_sec was 600.0, and is 60.0" in said
    assert any(line.startswith("the weights of the sources have changed: from step 51 on") for line in said)
    assert len(said) == 5


@pytest.mark.parametrize(
    ("change", "total"),
    [({"optimizer": {"lr": 1e-4}}, 100), ({"steps": 400}, 400), ({"schedule": {"kind": "constant"}}, 100)],
)
def test_a_jump_of_the_rate_is_said_with_both_ends(change: dict[str, Any], total: int) -> None:
    before, now = config(), config(**change)
    said = changes(before, now, total=total)
    last = rate_of(before.optimizer, before.schedule, 50, 100)
    rate = rate_of(now.optimizer, now.schedule, 51, total)
    jump = f"the learning rate jumps from {last:.4g} in step 50 to {rate:.4g} in step 51; unchanged it would go on with"
    assert said[-1].startswith(jump)
    assert ("the run had 100 steps, and has 400" in said) == (total == 400)


def test_no_jump_is_claimed_where_the_rate_goes_on() -> None:
    constant = {"schedule": {"kind": "constant", "warmup_steps": 3}}
    assert changes(config(**constant), config(**constant, steps=200), total=200) == [
        "steps was 100, and is 200",
        "the run had 100 steps, and has 200",
    ]
    assert not any("jumps" in line for line in changes(config(), config(steps=40), total=40))  # nothing comes after


def rates(lr: float, total: int, warmup: int, steps: Iterable[int], **schedule: Any) -> list[float]:
    shape = from_dict(ScheduleConfig, {"warmup_steps": warmup, **schedule})
    return [rate_of(OptimizerConfig(lr=lr), shape, step, total) for step in steps]


def test_warmup_reaches_the_rate_in_its_last_step() -> None:
    assert rates(1.0, 100, 4, range(1, 6)) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_its_share() -> None:
    middle, early, end = rates(2.0, 110, 10, (61, 36, 111), min_lr_share=0.1)
    assert middle == pytest.approx(2.0 * 0.55)
    assert early == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert end == pytest.approx(0.2)


def test_constant_stays() -> None:
    assert rates(0.5, 1000, 3, [1000], kind="constant") == [0.5]


@given(
    total=st.integers(1, 500),
    warmup=st.integers(0, 600),
    share=st.floats(0, 1),
    kind=st.sampled_from(["cosine", "constant"]),
)
def test_rates_rise_then_fall_and_stay_within_bounds(total: int, warmup: int, share: float, kind: str) -> None:
    found = rates(1.0, total, warmup, range(1, total + 1), kind=kind, min_lr_share=share)
    assert all(0 < rate <= 1 for rate in found)
    assert found[:warmup] == sorted(found[:warmup])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)


def test_a_config_of_another_version_gives_no_rate() -> None:
    state = {"config": {"optimizer": {"adam": 1}}, "total_steps": 9}
    said = changes_since(state, config(), done_steps=5, total_steps=100)
    assert "optimizer.adam was 1, and is null" in said
    assert not any("jumps" in line for line in said)
