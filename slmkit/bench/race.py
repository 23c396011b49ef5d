"""What all benchmarks share: a race between ways of doing the same work, processes of their own, and plain twins.

Example:
    fast, plain = race([lambda: codec.encode(waves), lambda: twin.encode(waves)], rounds=3)
    print(plain.seconds / fast.seconds)
"""

import importlib.util
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from slmkit.errors import UserError

TWINS = Path(__file__).resolve().parent.parent.parent / "tests" / "twins"


class Lap(NamedTuple):
    """One way of doing the work: what it gave in its last round, and the least seconds that a round took."""

    result: Any
    seconds: float


def race(
    works: Sequence[Callable[[], Any]], *, rounds: int, device: torch.device | str = "cpu", warm_up: bool = True
) -> list[Lap]:
    """Each work in turns, `rounds` times, so that a busy machine weighs on all alike; the best round of each counts.

    With `warm_up` each runs once untimed before. Raises UserError when nothing would be timed.
    """
    if rounds < 1:
        raise UserError("nothing would be timed", got=f"{rounds} rounds", expected="1 or more")
    for work in works if warm_up else ():
        work()
    laps = [Lap(None, math.inf)] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            start = clock(device)
            result = work()
            laps[i] = Lap(result, min(laps[i].seconds, clock(device) - start))
    return laps


def clock(device: torch.device | str = "cpu") -> float:
    """Seconds, after all work given to the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work` in a new process, whose memory is its alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def twin(name: str) -> ModuleType:
    """The plain implementation in `tests/twins/NAME.py`. Raises UserError where slmkit is not run from its checkout."""
    path = TWINS / f"{name}.py"
    if not path.is_file():
        raise UserError(
            "this benchmark compares with a plain implementation that lies in the tests",
            got=f"no file {path}",
            next_step="run it in a checkout of slmkit: pip install --editable .",
        )
    module_name = f"slmkit_twin_{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return sys.modules[module_name]
