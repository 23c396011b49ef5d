"""Which process this is among how many, and how a global batch is split between them.

The only file that reads rank environment variables (deepspeed, torchrun and srun all set some). Everything else takes
`World` and `BatchSplit` as plain values.

Invariant: for every step, the rows of all ranks and micro-batches together are rows 0 .. global_rows - 1, each once.

Example:
    split = BatchSplit(global_rows=8, micro_rows=2, world_size=2)   # accumulation is 2
    split.rows(rank=1, micro=0)                                     # range(4, 6)
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from slmkit.errors import UserError

MAX_PORT = 65535
LAUNCH_ID = "SLMKIT_LAUNCH_ID"  # of `slmkit launch`
LAUNCH_END = "SLMKIT_LAUNCH_END"  # a file in which the first process notes its exit code for `slmkit launch`
SHELL_STEPS = ("4294967290", "4294967291")  # Slurm's SLURM_INTERACTIVE_STEP and SLURM_BATCH_SCRIPT
SLURM_IDS = ("SLURM_JOB_ID", "SLURM_STEP_ID")


def threads_each(processes: int) -> int:
    """Threads for each of several processes, so that together they take the CPUs that this one may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


@dataclass(frozen=True, kw_only=True)
class World:
    """One process among `size`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @staticmethod
    def from_env(env: Mapping[str, str] = os.environ) -> "World":
        """Read RANK, WORLD_SIZE, LOCAL_RANK (deepspeed, torchrun) or SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID
        (srun).

        Raises UserError when a value is not a whole number or the rank is outside the world.
        """
        # In the shell of `salloc`, a step of one task of its own, a command is alone, whatever the job asked for.
        in_srun = "SLURM_STEP_ID" in env and "RANK" not in env and not _is_interactive(env)
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"  # of the step, of the job
        names = ("SLURM_PROCID", tasks, "SLURM_LOCALID") if in_srun else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        values = []
        for name, default in zip(names, ("0", "1", "0"), strict=True):
            text = env.get(name, default)
            if not text.strip().isdigit():
                raise UserError(f"{name} is not a whole number", got=repr(text), expected="0, 1, 2, ...")
            values.append(int(text))
        rank, size, local_rank = values
        if not 0 <= rank < size:
            raise UserError(f"{names[0]} is out of range", got=f"rank {rank} of {size}", expected="0 <= rank < size")
        return World(rank=rank, size=size, local_rank=local_rank)


def _is_interactive(env: Mapping[str, str]) -> bool:
    """Whether this is the step in which Slurm runs a user's shell (`salloc`) or the script of a job."""
    return env["SLURM_STEP_ID"] in SHELL_STEPS


def launch_identity(env: Mapping[str, str] = os.environ) -> str:
    """What the processes of one launch have in common and other launches have not; "" where the launcher gives none.

    Those of Slurm count only where it started the processes: others do not carry its variables to other machines.
    """
    for names in ((LAUNCH_ID,), ("TORCHELASTIC_RUN_ID",), *([] if "RANK" in env else [SLURM_IDS])):
        if env.get(names[0]):
            return " ".join(f"{name}={env.get(name, '')}" for name in names)
    return ""


def agent_attempt(env: Mapping[str, str] = os.environ) -> str | None:
    """Where torchrun's agent serves the store at the master's port: how often it has started the processes."""
    return env.get("TORCHELASTIC_RESTART_COUNT", "0") if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None


@dataclass(frozen=True, kw_only=True)
class BatchSplit:
    """How a global batch of `global_rows` rows is cut into ranks and micro-batches of `micro_rows` rows."""

    global_rows: int
    micro_rows: int
    world_size: int = 1

    def __post_init__(self) -> None:
        per_pass = self.micro_rows * self.world_size
        if min(self.global_rows, self.micro_rows, self.world_size) < 1 or self.global_rows % per_pass:
            raise UserError(
                "micro_rows * accumulation * world must equal global_rows exactly",
                got=f"micro_rows {self.micro_rows}, world {self.world_size}, global_rows {self.global_rows}",
                expected=f"global_rows a multiple of micro_rows * world = {per_pass}",
                next_step="change global_rows or micro_rows in the run config, or the number of processes",
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank runs for one optimizer step."""
        return self.global_rows // (self.micro_rows * self.world_size)

    def rows(self, rank: int, micro: int) -> range:
        """Positions within the global batch that `rank` sees in its micro-batch number `micro`."""
        start = (rank * self.accumulation + micro) * self.micro_rows
        return range(start, start + self.micro_rows)


def free_port() -> int:
    """A port that nothing on this machine listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
