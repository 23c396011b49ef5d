"""One of two processes of the saver's tests, without DeepSpeed; the first prints what it has found as JSON.

python saver_worker.py DIRECTORY
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from checkpoints.saving import STATE, Weights, check_complete, saver_of

from slmkit.checkpoints import checkpoint, saver
from slmkit.config import run_dir as runs
from slmkit.errors import UserError
from slmkit.world import World

WORLD = World.from_env()
FULL_BYTES = 2000


def disk_is_full(is_full: bool) -> None:
    """In the second process: no file may grow larger than a part of a checkpoint."""
    if WORLD.rank == 1:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES if is_full else hard, hard))


def good(run_dir: Path) -> Any:
    """Saves that training overtakes, one more at once, and a poll."""
    weights, steps = Weights(WORLD.rank), []
    with saver_of(run_dir, WORLD) as mine:
        mine.prepare(weights)
        for step in (1, 2, 3):
            mine.save(weights.at(step), step, STATE)
            weights.at(-1)
        mine.wait()
        steps = [outcome.step for outcome in mine.poll() if outcome.error is None and outcome.num_bytes > 24_000]
    with saver_of(run_dir, WORLD, asynchronous=False) as mine:
        mine.save(weights.at(4), 4, STATE)
    dist.barrier()
    return {"steps": steps, "complete": check_complete(run_dir, WORLD.size)}


def full(run_dir: Path) -> Any:
    """The disk of the second process is full for the middle one of three saves."""
    weights, found = Weights(WORLD.rank), []
    with saver_of(run_dir, WORLD, on_error="continue") as mine:
        for step in (1, 2, 3):
            mine.wait()
            disk_is_full(step == 2)
            mine.save(weights.at(step), step, STATE)
            mine.wait()
            dist.barrier()
            found.append([mine.failures, sorted(path.name for path in runs.root(run_dir).iterdir())])
            dist.barrier()
    return {"found": found, "complete": check_complete(run_dir, WORLD.size)}


def stop(run_dir: Path) -> Any:
    weights = Weights(WORLD.rank)
    with saver_of(run_dir, WORLD) as mine:
        mine.save(weights.at(1), 1, STATE)
        mine.wait()
        disk_is_full(True)
        mine.save(weights.at(2), 2, STATE)
        try:
            mine.save(weights.at(3), 3, STATE)
        except UserError as error:
            message = str(error)
        disk_is_full(False)
    messages: list[Any] = [None] * WORLD.size
    dist.all_gather_object(messages, message)
    return {"messages": messages, "complete": check_complete(run_dir, WORLD.size)}


def bug(run_dir: Path) -> Any:
    """In the first process it is raised; the others hear of a failure."""
    whole = checkpoint.write

    def write(path: Path, value: Any) -> int:
        if WORLD.is_first:
            raise ValueError("a bug")
        return whole(path, value)

    checkpoint.write = write
    message = ""
    with saver_of(run_dir, WORLD) as mine:
        mine.save(Weights(WORLD.rank).at(1), 1, STATE)
        try:
            mine.wait()
        except (UserError, ValueError) as error:
            message = str(error)
    checkpoint.write = whole
    messages: list[Any] = [None] * WORLD.size
    dist.all_gather_object(messages, message)
    return {"messages": messages, "complete": runs.complete_steps(run_dir)}


def alone(run_dir: Path) -> Any:
    """Only the first process saves."""
    saver.GRACE_SEC, message = 0.2, ""
    mine = saver_of(run_dir, WORLD)
    if WORLD.is_first:
        mine.save(Weights().at(1), 1, STATE)
    mine.close()
    try:
        mine.wait()
    except UserError as error:
        message = str(error)
    return {"message": message, "complete": runs.complete_steps(run_dir)}


def main() -> None:
    dist.init_process_group("gloo")
    store = dist.distributed_c10d._get_default_store()
    results: dict[str, Any] = {}
    for work in (good, full, stop, bug):
        results[work.__name__] = work(Path(sys.argv[1]) / work.__name__)
        dist.barrier()
    results["keys"] = [key for key in store.list_keys() if "slmkit" in key] if WORLD.is_first else None
    dist.barrier()
    results["alone"] = alone(Path(sys.argv[1]) / "alone")
    if WORLD.is_first:
        print(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
