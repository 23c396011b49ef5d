"""A run continues on any number of processes: 2, 2 again, 1 and 3, stopped after checkpoints on the way."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from train.place import Place
from train.ranks import ROOT

from slmkit.config.run_dir import UNIVERSAL
from slmkit.export import consolidate
from slmkit.model.pretrained import load

STEPS, GLOBAL_ROWS = 10, 12
DEFAULT = "zero2_fp32"
OTHERS = sorted({file.stem for file in (ROOT / "ds_configs").iterdir()} - {DEFAULT})
RECIPES = [DEFAULT, *(pytest.param(recipe, marks=pytest.mark.full) for recipe in OTHERS)]


class Leg(NamedTuple):
    """Part of a run."""

    processes: int
    micro_rows: int
    save_every_steps: int
    at: int | None  # the step after which it stops


AGAIN = Leg(2, 3, 3, 4)  # on as many processes as before
LEGS = (Leg(2, 3, 2, 2), AGAIN, Leg(1, 6, 5, 6), Leg(3, 2, 6, None))
STEPS_OF_LEGS = {2: range(1, 5), 1: range(4, 7), 3: range(6, 11)}
STEPS_OF_OTHERS = {2: range(1, 5), 3: range(4, 11)}  # the other recipes go from 2 to 3 at once, to save time
WHOLE = Leg(2, 3, STEPS, None)


def task(place: Place, recipe: str, leg: Leg, kind: str = "train_noting_samples", **change: Any) -> dict[str, Any]:
    config = place.config(
        change.pop("run", recipe),
        "mtp",
        deepspeed=str(ROOT / "ds_configs" / f"{recipe}.json"),
        global_rows=GLOBAL_ROWS,
        micro_rows=leg.micro_rows,
        save_every_steps=leg.save_every_steps,
        steps=STEPS,
    )
    return {"kind": kind, "at": leg.at, "config": config, **change}


def is_zero3(task: dict[str, Any]) -> bool:
    """These come last in a process: ZeRO-3 leaves its own linear function in torch, which rounds bf16 otherwise."""
    return "zero3" in task["config"]["deepspeed"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("elastic"))


@pytest.fixture(scope="module")
def refusals(place: Place) -> dict[str, Any]:
    """The default recipe, one start per leg; before the third leg, attempts at it that fail or are killed."""
    first, again, third, *later = LEGS
    whole = task(place, DEFAULT, WHOLE, run=f"whole-{DEFAULT}")
    waiting = task(place, DEFAULT, first, "in_first")
    *_, waited = place.run(2, [whole, task(place, DEFAULT, first), task(place, DEFAULT, again), waiting])
    place.kill(third.processes, task(place, DEFAULT, third, "train_killed_in_conversion"))
    left = sorted(path.name for path in (place.directory / DEFAULT / UNIVERSAL).iterdir())
    attempts = [task(place, DEFAULT, third, kind, at="step-3") for kind in ("damaged", "disk_error")]
    damaged, disk, _ = place.run(third.processes, [*attempts, task(place, DEFAULT, third)])
    for leg in later:
        place.run(leg.processes, [task(place, DEFAULT, leg)])
    return {"waited": waited, "left": left, "damaged": damaged, "disk": disk}


@pytest.fixture(scope="module")
def others(place: Place) -> None:
    """The other recipes, on 2, 2 and 3 processes."""
    first, again, *_, last = LEGS
    beginning = [task(place, recipe, leg) for leg in (first, again) for recipe in OTHERS]
    whole = task(place, "zero2_bf16", WHOLE, run="whole-zero2_bf16")
    place.run(2, sorted([whole, *beginning], key=is_zero3))
    place.run(last.processes, sorted((task(place, recipe, last) for recipe in OTHERS), key=is_zero3))


@pytest.fixture
def recipe(request: pytest.FixtureRequest) -> str:
    """A DeepSpeed file of which all runs are there."""
    request.getfixturevalue("refusals")
    if request.param != DEFAULT:
        request.getfixturevalue("others")
    return request.param


def whole_of(recipe: str) -> str:
    """The uninterrupted run: all stages of ZeRO, and offloading, compute the same."""
    return f"whole-zero2_{recipe.rpartition('_')[2]}"


def samples(place: Place, run: str) -> dict[tuple[int, int], list[str]]:
    """Keys of the samples by (step, processes), in the order of the global batch: ranks follow each other in it."""
    notes: dict[tuple[int, int], list[str]] = {}
    files = sorted((place.directory / run).glob("samples-*.jsonl"), key=lambda path: path.name)
    for line in (line for file in files for line in file.read_text().splitlines()):
        note = json.loads(line)
        notes.setdefault((note["step"], note["processes"]), []).extend(note["keys"])
    return notes


def values(records: Iterable[dict[str, Any]], *names: str) -> list[float]:
    return [record[name] for record in records for name in names]


@pytest.mark.parametrize("recipe", RECIPES, indirect=True)
def test_the_losses_are_those_of_an_uninterrupted_run(place: Place, recipe: str) -> None:
    """Float32: sums in another order. bf16: 8 bits of the weights, of the activations and of what they are sums of."""
    whole, got = place.metrics(whole_of(recipe)), place.metrics(recipe)
    tolerance = 1e-4 if recipe.endswith("fp32") else 1e-3
    assert [record["step"] for record in got] == list(range(1, STEPS + 1))
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.05
    assert values(got, "optimizer/lr", "epoch") == values(whole, "optimizer/lr", "epoch")
    names = ("loss", "optimizer/grad_norm")
    assert values(got, *names) == pytest.approx(values(whole, *names), abs=tolerance)


@pytest.mark.parametrize("recipe", RECIPES, indirect=True)
def test_every_step_sees_the_samples_of_an_uninterrupted_run(place: Place, recipe: str) -> None:
    """Law. Also in the steps that are taken again because they came after the checkpoint."""
    whole, got = samples(place, whole_of(recipe)), samples(place, recipe)
    legs = STEPS_OF_LEGS if recipe == DEFAULT else STEPS_OF_OTHERS
    assert set(got) == {(step, processes) for processes, steps in legs.items() for step in steps}
    assert all(whole.values())
    for (step, processes), keys in got.items():
        assert keys == whole[step, WHOLE.processes], (step, processes)


@pytest.mark.parametrize("recipe", [DEFAULT, pytest.param("zero2_bf16", marks=pytest.mark.full)], indirect=True)
def test_on_as_many_processes_not_a_bit_differs(place: Place, recipe: str) -> None:
    """Up to the checkpoint from which another number of processes went on."""
    assert place.metrics(recipe)[:3] == place.metrics(whole_of(recipe))[:3]


@pytest.mark.parametrize("recipe", RECIPES, indirect=True)
def test_the_last_checkpoint_consolidates(place: Place, tmp_path: Path, recipe: str) -> None:
    """To the weights that the first of three processes held, and near those of the uninterrupted run.

    ZeRO-3 writes no whole weights; `test_engine` compares those it has in memory.
    """
    checkpoint = consolidate(place.directory / recipe, tmp_path / "out")
    assert checkpoint.state["facts"]["processes"] == LEGS[-1].processes
    assert checkpoint.state["cursor"].keys() >= {"epoch", "window", "first_row"}
    consolidate(place.directory / whole_of(recipe), tmp_path / "whole")
    found, whole = (load(tmp_path / name).state_dict() for name in ("out", "whole"))
    assert found.keys() == whole.keys()
    if not recipe.startswith("zero3"):
        held = torch.load(checkpoint.path / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        assert found.keys() == held.keys()
        for name, weight in found.items():
            assert torch.equal(weight.to(held[name].dtype), held[name]), name
    for name, weight in found.items():
        if recipe.endswith("fp32"):
            assert torch.allclose(weight, whole[name], atol=1e-4), name


@pytest.mark.parametrize("recipe", RECIPES, indirect=True)
def test_nothing_of_the_conversion_stays(place: Place, recipe: str) -> None:
    assert not (place.directory / recipe / UNIVERSAL).exists()


def test_a_killed_conversion_is_not_loaded(refusals: dict[str, Any]) -> None:
    """The run that left it went on to the losses above."""
    assert refusals["left"] == ["step-3"]


def test_a_checkpoint_that_cannot_be_converted_is_named(refusals: dict[str, Any]) -> None:
    assert len(refusals["damaged"]) == 4
    for message in refusals["damaged"]:
        assert message.startswith("cannot load")
        assert "checkpoints/step-3" in message


def test_a_full_disk_is_named(refusals: dict[str, Any]) -> None:
    system, archive, _ = refusals["disk"]
    for message, reason in ((system, "No space left on device"), (archive, "PytorchStreamWriter failed")):
        assert message.startswith("UserError: cannot write")
        assert f"{UNIVERSAL}/step-3" in message
        assert reason in message


def test_all_wait_for_the_first_and_learn_of_its_error(refusals: dict[str, Any]) -> None:
    assert refusals["waited"] == {"errors": 2, "ran": 1, "waits": True}
