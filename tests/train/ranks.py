"""Starts the processes of a world the way a launcher does, for tests: forked from one that has torch loaded."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from forked import PIPE, Process

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_SEC = 600


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(world_size: int, command: Sequence[str], **variables: str) -> list[Process]:
    """`python *command` once per rank."""
    port = str(free_port())
    processes = []
    for rank in range(world_size):
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MASTER_"))}
        env |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **variables}
        processes.append(Process(command, env=env, stdout=PIPE, stderr=PIPE))
    return processes


def finish_ranks(processes: Sequence[Process]) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of each rank; none is left behind."""
    try:
        outputs = [process.communicate(timeout=TIMEOUT_SEC) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def run_ranks(world_size: int, command: Sequence[str], **variables: str) -> list[tuple[int, str, str]]:
    """Start and finish; all ranks must succeed."""
    done = finish_ranks(start_ranks(world_size, command, **variables))
    for code, _, errors in done:
        assert code == 0, errors[-4000:]
    return done
