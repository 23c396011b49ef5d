"""What is decided before the first process starts DeepSpeed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import WORDS, write_corpus

from slmkit.config.load import from_dict
from slmkit.config.train import TrainConfig
from slmkit.errors import UserError
from slmkit.model.init_base import init_base
from slmkit.train.run import Run, check_facts, prepare, steps_of_epoch
from slmkit.world import World

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    write_corpus(place / "corpus", 20, frames=(4, 12))
    init_base(WORDS, place / "base", hidden_size=16, num_layers=1, vocab_size=280)
    return place


def config(place: Path, **change: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "run_dir": str(place / "run"),
        "base": str(place / "base"),
        "deepspeed": str(ROOT / "ds_configs" / "zero2_fp32.json"),
        "data": {"corpus": str(place / "corpus"), "row_tokens": 160, **change.pop("data", {})},
        "steps": 50,
        "global_rows": 4,
    }
    return from_dict(TrainConfig, {**values, **change})


def test_the_position_follows_from_the_steps_taken(place: Path) -> None:
    run = prepare(config(place), World())
    lengths = [steps_of_epoch(run.config, run.data, epoch) for epoch in range(50)]
    positions = [(epoch, step) for epoch, length in enumerate(lengths) for step in range(length)][:50]
    assert len({epoch for epoch, _ in positions}) > 2
    for done in range(50):
        assert next(run.epochs(done)) == positions[done]
    assert list(run.epochs(50)) == []
    assert list(run.epochs(0)) == [(epoch, 0) for epoch in range(positions[-1][0] + 1)]


def test_epochs_are_counted_in_steps(place: Path) -> None:
    by_epochs = prepare(config(place, steps=None, epochs=3), World())
    assert by_epochs.total_steps == sum(steps_of_epoch(by_epochs.config, by_epochs.data, epoch) for epoch in range(3))
    assert [epoch for epoch, _ in by_epochs.epochs(0)] == [0, 1, 2]


def test_held_out_samples_are_not_trained_on(place: Path) -> None:
    run = prepare(config(place, data={"eval_share": 0.3}), World())
    assert run.held_out is not None
    held_out, trained = set(run.held_out.members), set(run.data.members)
    assert held_out
    assert not held_out & trained
    assert held_out | trained == set(range(20))


def test_terms_are_named(place: Path) -> None:
    assert prepare(config(place, model={"group": 6}), World()).terms == ["text", "a1", "b1", "c1", "a2", "b2", "c2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"group": 4}},
            "model.group does not fit the codec\n  got:      4\n  expected: 0 or a multiple",
        ),
        ({"data": {"row_tokens": 10}}, "there is nothing to train on\n  got:      20 samples, 20 of them longer"),
        ({"global_rows": 5, "micro_rows": 2}, "must equal global_rows exactly"),
        ({"deepspeed": "none.json"}, "cannot read none.json as JSON"),
        ({"base": "nowhere"}, "no such model directory"),
        ({"data": {"corpus": "nowhere"}}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_named(place: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare(config(place, **change), World())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "fact", ["vocabulary", "codec", "corpus", "precision", "seed", "data.eval_share", "model.head"]
)
def test_a_changed_fact_is_named(place: Path, fact: str) -> None:
    run: Run = replace(prepare(config(place), World()))
    check_facts(run.facts, dict(run.facts), Path("step-1"))
    with pytest.raises(UserError, match=f"cannot continue step-1: {fact} has changed"):
        check_facts(run.facts, {**run.facts, fact: "other"}, Path("step-1"))
    with pytest.raises(UserError, match="expected: not recorded"):
        check_facts(run.facts, {name: value for name, value in run.facts.items() if name != fact}, Path("step-1"))


def test_the_number_of_processes_may_change_but_must_be_known(place: Path) -> None:
    facts = prepare(config(place), World()).facts
    check_facts(facts, {**facts, "processes": 8}, Path("step-1"))
    unknown = {name: value for name, value in facts.items() if name != "processes"}
    with pytest.raises(UserError, match=r"processes has changed\n  got:      1\n  expected: not recorded"):
        check_facts(facts, unknown, Path("step-1"))
