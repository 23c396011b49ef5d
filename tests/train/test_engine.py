"""Every DeepSpeed file of the toolkit, with two real processes: steps that are skipped, checkpoints, whole weights."""

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest
from train.ranks import ROOT, run_ranks

from slmkit.errors import UserError
from slmkit.train.engine import refuse_shared

DEFAULT = ("zero2_fp32",)
OTHERS = tuple(sorted({file.stem for file in (ROOT / "ds_configs").iterdir()} - set(DEFAULT)))
FILES = [*DEFAULT, *(pytest.param(file, marks=pytest.mark.full) for file in OTHERS)]
WORKER = str(Path(__file__).with_name("engine_worker.py"))
BOTH = 2  # processes
BAD, GOOD = ("1", "4"), ("2", "3", "5", "6")  # as in the worker
Results = dict[str, Any]


def results_of(directory: Path, files: tuple[str, ...]) -> Results:
    run_ranks(BOTH, [WORKER, str(directory / "results.json"), str(directory), *files])
    return json.loads((directory / "results.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_of(tmp_path_factory.mktemp("engine"), DEFAULT)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_of(tmp_path_factory.mktemp("engine_others"), OTHERS)


@pytest.fixture
def of_file(request: pytest.FixtureRequest) -> Results:
    """What became of the steps with a DeepSpeed file."""
    results: Results = request.getfixturevalue("results" if request.param in DEFAULT else "others")
    return results[request.param]


def test_all_files_are_there() -> None:
    parts = [f"{zero}_{kind}" for zero in ("zero1", "zero2", "zero2_offload", "zero3") for kind in ("bf16", "fp32")]
    assert sorted(parts) == sorted((*DEFAULT, *OTHERS))


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_steps_of_every_stage_are_plain_steps(results: Results, stage: str) -> None:
    """Law. 1e-4: float32 rounding of the weights, relative to updates that are much smaller."""
    assert results["parity"][stage] < 1e-4


@pytest.mark.parametrize("of_file", FILES, indirect=True)
def test_a_bad_step_is_skipped_by_all(of_file: Results) -> None:
    """One micro-batch of one process is bad: in the first step by the gradient of a layer, later by the loss."""
    for step in BAD:
        found = of_file["steps"][step]
        assert (found["skipped"], found["unchanged"]) == (BOTH, BOTH), step
        assert found["norm"] == math.inf
    for step in GOOD:
        found = of_file["steps"][step]
        assert (found["skipped"], found["unchanged"]) == (0, 0), step
    assert [found["count"] for found in of_file["steps"].values()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("of_file", FILES, indirect=True)
def test_training_goes_on_as_if_there_had_been_no_bad_step(of_file: Results) -> None:
    """Not a bit differs."""
    found, good = of_file["steps"], of_file["good steps"]
    assert [found[step]["norm"] for step in GOOD] == [good[step]["norm"] for step in GOOD]
    assert of_file["as if"] == BOTH


@pytest.mark.parametrize("of_file", FILES, indirect=True)
def test_a_checkpoint_behind_a_skipped_step_holds_everything(of_file: Results) -> None:
    assert of_file["loaded"] == BOTH
    assert of_file["as loaded"] == BOTH
    found = of_file["steps"]
    assert of_file["loaded steps"] == {step: found[step] for step in ("5", "6")}


@pytest.mark.parametrize("of_file", FILES, indirect=True)
def test_its_universal_form_holds_everything(of_file: Results) -> None:
    """Not a bit differs on as many processes: moments, the count of updates, and which weights decay."""
    found = of_file["steps"]
    assert of_file["converted steps"] == {step: found[step] for step in ("5", "6")}
    assert of_file["as converted"] == BOTH


@pytest.mark.parametrize("of_file", FILES, indirect=True)
def test_a_checkpoint_merges_to_the_weights_in_training(of_file: Results) -> None:
    assert of_file["merged"] == BOTH
    assert of_file["merged in float32"]


@pytest.mark.parametrize("of_file", FILES, indirect=True)
def test_the_first_process_can_use_the_model_alone(of_file: Results) -> None:
    expected = dict.fromkeys(("loss", "weights", "names", "tied", "training", "random"), True)
    assert of_file["alone"] == expected


def test_two_processes_on_one_gpu_are_refused() -> None:
    """The same name of a GPU on two machines is two GPUs."""
    refuse_shared([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-1")])
    with pytest.raises(UserError, match="several processes are on one GPU of b") as caught:
        refuse_shared([("a", "GPU-1"), ("b", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-1")])
    assert caught.value.got == "ranks 1, 3 on GPU GPU-1"


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
