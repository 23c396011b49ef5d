"""Every DeepSpeed file of the toolkit, with two real processes: steps that are skipped, checkpoints, whole weights."""

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest
from train.ranks import ROOT, run_ranks

FILES = sorted(file.stem for file in (ROOT / "ds_configs").iterdir())
WORKER = str(Path(__file__).with_name("engine_worker.py"))
BOTH = 2  # processes
BAD, GOOD = ("1", "4"), ("2", "3", "5", "6")  # as in the worker
Results = dict[str, Any]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("engine")
    run_ranks(BOTH, [WORKER, str(directory / "results.json"), str(directory)])
    return json.loads((directory / "results.json").read_text())


def test_all_files_are_there() -> None:
    parts = [f"{zero}_{kind}" for zero in ("zero1", "zero2", "zero2_offload", "zero3") for kind in ("bf16", "fp32")]
    assert sorted(parts) == FILES


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_steps_of_every_stage_are_plain_steps(results: Results, stage: str) -> None:
    """Law. 1e-4: float32 rounding of the weights, relative to updates that are much smaller."""
    assert results["parity"][stage] < 1e-4


@pytest.mark.parametrize("file", FILES)
def test_a_bad_step_is_skipped_by_all(results: Results, file: str) -> None:
    """One micro-batch of one process is bad: in the first step by the gradient of a layer, later by the loss."""
    for step in BAD:
        found = results[file]["steps"][step]
        assert (found["skipped"], found["unchanged"]) == (BOTH, BOTH), step
        assert found["norm"] == math.inf
    for step in GOOD:
        found = results[file]["steps"][step]
        assert (found["skipped"], found["unchanged"]) == (0, 0), step
    assert [found["count"] for found in results[file]["steps"].values()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("file", FILES)
def test_training_goes_on_as_if_there_had_been_no_bad_step(results: Results, file: str) -> None:
    """Not a bit differs."""
    found, good = results[file]["steps"], results[file]["good steps"]
    assert [found[step]["norm"] for step in GOOD] == [good[step]["norm"] for step in GOOD]
    assert results[file]["as if"] == BOTH


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_behind_a_skipped_step_holds_everything(results: Results, file: str) -> None:
    assert results[file]["loaded"] == BOTH
    assert results[file]["as loaded"] == BOTH
    found = results[file]["steps"]
    assert results[file]["loaded steps"] == {step: found[step] for step in ("5", "6")}


@pytest.mark.parametrize("file", FILES)
def test_its_universal_form_holds_everything(results: Results, file: str) -> None:
    """Not a bit differs on as many processes: moments, the count of updates, and which weights decay."""
    found = results[file]["steps"]
    assert results[file]["converted steps"] == {step: found[step] for step in ("5", "6")}
    assert results[file]["as converted"] == BOTH


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_merges_to_the_weights_in_training(results: Results, file: str) -> None:
    assert results[file]["merged"] == BOTH
    assert results[file]["merged in float32"]


@pytest.mark.parametrize("file", FILES)
def test_the_first_process_can_use_the_model_alone(results: Results, file: str) -> None:
    expected = dict.fromkeys(("loss", "weights", "names", "tied", "training", "random"), True)
    assert results[file]["alone"] == expected


SHARES = """
from pathlib import Path
from slmkit.group import barrier
from slmkit.train.engine import process_group
from slmkit.world import World
with process_group(World.from_env()):
    barrier()
    maps = Path("/proc/self/maps").read_text().splitlines()
    print([line.split("/", 1)[1] for line in maps if "deepspeed_allreduce_buffer" in line])
"""


def test_processes_leave_no_shared_memory_behind() -> None:
    """Under the launcher of DeepSpeed, which sets LOCAL_SIZE, they have some."""
    for _, printed, _ in run_ranks(2, ["-c", SHARES], LOCAL_SIZE="2"):
        used = ast.literal_eval(printed.splitlines()[-1])
        assert len(used) == 2
        assert all(name.endswith(" (deleted)") for name in used)
