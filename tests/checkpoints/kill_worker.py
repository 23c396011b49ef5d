"""Saves that are killed at random moments, in children of one process that has imported torch once.

    python kill_worker.py DIRECTORY ROUNDS WORLD_SIZE

After each round every complete checkpoint must load, none may be lost, and `clean` must leave nothing else.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from checkpoints.saving import STATE, Weights, check_complete, saver_of

from slmkit.checkpoints import checkpoint
from slmkit.config import run_dir as runs
from slmkit.world import World

START_SEC, SAVING_SEC = 60.0, 0.04


def save_for_ever(run_dir: Path, world: World, meeting: Path, start: int) -> None:
    if world.size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=world.rank, world_size=world.size)
    weights = Weights(world.rank, num_values=20_000)
    with saver_of(run_dir, world) as saver:
        for step in range(start + 1, start + 10_000):
            saver.save(weights.at(step), step, STATE)


def round_of(run_dir: Path, world_size: int, meeting: Path, rng: random.Random) -> int:
    """Start, kill at a random moment of the saving, check; returns how many checkpoints were under way.

    The first round goes on until there is a checkpoint to lose.
    """
    before = check_complete(run_dir, world_size)
    start = before[-1] if before else 0
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            save_for_ever(run_dir, World(rank=rank, size=world_size), meeting, start)
            os._exit(1)
        children.append(child)
    deadline = time.monotonic() + START_SEC
    while not (any(step > start for step, _ in runs.directories(run_dir)) if before else runs.complete_steps(run_dir)):
        assert time.monotonic() < deadline, "no save began"
        time.sleep(0.001)
    time.sleep(SAVING_SEC * world_size * rng.random())
    rng.shuffle(children)
    for child in children:
        os.kill(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [-signal.SIGKILL] * world_size
    after = check_complete(run_dir, world_size)
    assert not before or after[-1] >= before[-1], "a finished checkpoint is gone"
    debris = len(checkpoint.clean(run_dir))
    assert sorted(path.name for path in runs.root(run_dir).iterdir()) == sorted(f"step-{step}" for step in after)
    return debris


def main() -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    directory, rounds, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    directory.mkdir()
    rng = random.Random(0)
    debris = sum(round_of(directory / "run", world_size, directory / f"meeting-{i}", rng) for i in range(rounds))
    print(debris, runs.complete_steps(directory / "run")[-1])


if __name__ == "__main__":
    main()
