"""A state that is saved without DeepSpeed, for tests of the saver."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slmkit.checkpoints.saver import Saver
from slmkit.config import run_dir as runs
from slmkit.world import World

STATE = {"facts": {"vocabulary": "v", "processes": 1}}


class Weights:
    """In the place of an engine: some files per process, all of whose numbers are the step."""

    def __init__(self, rank: int = 0, num_values: int = 1000) -> None:
        self.rank = rank
        self.before_update: Callable[[], None] = lambda: None
        self.values = [torch.zeros(num_values) for _ in range(3)]

    def at(self, step: int) -> "Weights":
        self.before_update()
        for value in self.values:
            value.fill_(step)
        return self

    def parts(self, path: Path, copy: Callable[[Any], Any]) -> list[tuple[str, Any]]:
        return [(f"part_{i}_rank_{self.rank}.pt", copy({"value": value})) for i, value in enumerate(self.values)]


def saver_of(run_dir: str | Path, world: World | None = None, **change: Any) -> Saver:
    return Saver(run_dir, world or World(), **{"keep_last": 2, **change})


def check_complete(run_dir: str | Path, num_ranks: int = 1) -> list[int]:
    """The complete checkpoints, every one of which must hold what was saved."""
    steps = runs.complete_steps(run_dir)
    for step in steps:
        path = runs.read(run_dir, step).path
        names = {f"part_{i}_rank_{rank}.pt" for i in range(3) for rank in range(num_ranks)}
        names |= {f"random_rank_{rank}.pt" for rank in range(num_ranks)}
        assert {file.name for file in path.iterdir()} == names | {runs.MARKER}
        for file in path.glob("part_*"):
            assert torch.load(file, weights_only=True)["value"].unique().tolist() == [step], file
    return steps
