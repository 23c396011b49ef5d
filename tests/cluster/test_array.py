"""The array that `slmkit tokenize submit` plans: who does what, the two command lines, what is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.cluster.array import ArrayOptions, ArrayPlan, describe, plan_array, submit_both
from slmkit.errors import UserError


def make(options: ArrayOptions, shard_sec: Sequence[float]) -> ArrayPlan:
    return plan_array(options, ["S", "C", "my out", "--config", "r.yaml"], ["my out"], shard_sec)


def test_the_commands_and_who_does_what() -> None:
    options = ArrayOptions(tasks=4, limit=2, gpus=1, cpus=8, time="30", partition="gpu", more=("--account=me",))
    assert describe(make(options, [3600.0] * 6)) == [
        "4 tasks, at most 2 at once, each with 8 CPUs and 1 GPU",
        "  shards of a task: 1 to 2, of 6; task T has T, T + 4, T + 8, ...",
        "  audio of a task: 1.00 to 2.00 h, of 6.00 h, as far as the source says",
        "a job after them, when all have succeeded, finalizes the corpus",
        "commands:",
        "  sbatch --array=0-3%2 --export=ALL,NUM_TASKS=4 --cpus-per-task=8 --gpus-per-node=1 --time=30 --partition=gpu "
        f"--account=me {ArrayOptions().scripts}/array.sbatch S C 'my out' --config r.yaml",
        "  sbatch --dependency=afterok:ID_OF_THE_ARRAY --time=30 --partition=gpu --account=me "
        f"{ArrayOptions().scripts}/finalize.sbatch 'my out'",
    ]


def test_no_more_tasks_than_shards() -> None:
    plan = make(ArrayOptions(tasks=64, limit=16), [0.0, 0.0, 0.0])
    assert plan.array[:3] == ("sbatch", "--array=0-2%3", "--export=ALL,NUM_TASKS=3")
    lines = describe(plan)
    assert lines[0] == "3 tasks, at most 3 at once, each with 4 CPUs and no GPU"
    assert lines[2] == "  audio of a task: the source does not say"
    assert "note: 3 tasks, not 64: there are no more shards to share" in lines
    assert not [word for word in plan.array if "gpu" in word]


@given(st.integers(1, 99), st.integers(1, 99), st.lists(st.floats(0, 1e5), min_size=1, max_size=200).map(tuple))
def test_every_shard_has_a_task_and_every_task_a_shard(tasks: int, limit: int, shard_sec: tuple[float, ...]) -> None:
    plan = make(ArrayOptions(tasks=tasks, limit=limit), shard_sec)
    assert 1 <= plan.limit <= len(plan.shares) <= tasks
    assert sum(share.shards for share in plan.shares) == len(shard_sec)
    assert min(share.shards for share in plan.shares) >= 1
    assert sum(share.seconds for share in plan.shares) == pytest.approx(sum(shard_sec))


def test_a_corpus_without_shards_is_refused() -> None:
    with pytest.raises(UserError, match="the plan has no shards"):
        make(ArrayOptions(), [])


def test_missing_scripts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "array.sbatch").touch()
    with pytest.raises(UserError, match=rf"there is no sbatch script\n.*{tmp_path}/finalize.sbatch"):
        make(ArrayOptions(scripts=tmp_path), [1.0])


def test_the_second_job_waits_for_the_first() -> None:
    plan, given = make(ArrayOptions(), [1.0]), []

    def submit(command: Sequence[str]) -> str:
        given.append(tuple(command))
        return str(40 + len(given))

    assert submit_both(plan, submit) == ("41", "42")
    assert given == [plan.array, ("sbatch", "--dependency=afterok:41", *plan.finalize[2:])]


def test_a_first_job_that_stays_alone_is_named() -> None:
    def submit(command: Sequence[str]) -> str:
        if "--dependency=afterok:41" in command:
            raise UserError("Slurm did not accept the job", got="exit code 1")
        return "41"

    alone = (
        r"the array is submitted as job 41, but not the job that finalizes: Slurm did not accept the job\n"
        r"  got:      exit code 1\n  next:     scancel 41 to take the array back, or .*:\n"
        r" +sbatch --dependency=afterok:41 /.*/finalize.sbatch 'my out'$"
    )
    with pytest.raises(UserError, match=alone):
        submit_both(make(ArrayOptions(), [1.0]), submit)
