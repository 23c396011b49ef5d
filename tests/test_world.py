"""Rank arithmetic: every row of a global batch on exactly one rank and micro-batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.errors import UserError
from slmkit.world import BatchSplit, World, agent_attempt, launch_identity


@given(st.integers(1, 8), st.integers(1, 64), st.integers(1, 16))
def test_every_row_is_seen_exactly_once(micro_rows: int, world_size: int, accumulation: int) -> None:
    split = BatchSplit(global_rows=micro_rows * world_size * accumulation, micro_rows=micro_rows, world_size=world_size)
    assert split.accumulation == accumulation
    seen = [row for rank in range(world_size) for micro in range(accumulation) for row in split.rows(rank, micro)]
    assert sorted(seen) == list(range(split.global_rows))


@pytest.mark.parametrize(("rows", "micro", "world"), [(8, 3, 1), (8, 2, 3), (0, 1, 1), (8, 0, 1)])
def test_uneven_splits_are_refused_with_the_numbers(rows: int, micro: int, world: int) -> None:
    with pytest.raises(UserError, match=f"micro_rows {micro}, world {world}, global_rows {rows}"):
        BatchSplit(global_rows=rows, micro_rows=micro, world_size=world)


def test_world_reads_every_launcher() -> None:
    assert World.from_env({}) == World(rank=0, size=1, local_rank=0)
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "9"}
    assert World.from_env(torchrun) == World(rank=3, size=4, local_rank=1)
    srun = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    assert World.from_env(srun) == World(rank=2, size=4, local_rank=0)
    assert not World.from_env(srun).is_first
    # Inside `sbatch` but not `srun`, the job's task count says nothing of this process.
    assert World.from_env({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}).size == 1


def test_a_shell_inside_an_allocation_is_alone() -> None:
    shell = {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
    assert World.from_env(shell).size == 1
    # `srun --ntasks 1 --pty bash` in a job of eight tasks.
    one = {**shell, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert World.from_env(one).size == 1


def test_the_identity_of_a_launch_is_what_its_launcher_gives() -> None:
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    assert launch_identity({}) == ""
    assert launch_identity({**slurm, "SLMKIT_LAUNCH_ID": "abc"}) == "SLMKIT_LAUNCH_ID=abc"
    assert launch_identity({"TORCHELASTIC_RUN_ID": "x"}) == "TORCHELASTIC_RUN_ID=x"
    assert launch_identity(slurm) == "SLURM_JOB_ID=7 SLURM_STEP_ID=0"
    assert launch_identity({**slurm, "RANK": "0"}) == ""
    assert agent_attempt(slurm) is None
    assert agent_attempt({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}) == "2"


def test_nonsense_ranks_are_refused() -> None:
    with pytest.raises(UserError, match="RANK is not a whole number"):
        World.from_env({"RANK": "first"})
    with pytest.raises(UserError, match="RANK is out of range"):
        World.from_env({"RANK": "4", "WORLD_SIZE": "4"})
