"""What all benchmarks share: a race between ways of doing the same work, processes of their own, and plain twins.

Example:
    fast, plain = race([lambda: codec.encode(waves), lambda: twin.encode(waves)], rounds=3)
    print(plain.seconds / fast.seconds)
"""

import importlib.util
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from slmkit.errors import UserError

CHECKOUT = Path(__file__).resolve().parent.parent.parent
TWINS = CHECKOUT / "tests" / "twins"
SHOWN_LINES = 6  # of a command that failed


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


class Used(NamedTuple):
    """What a command took."""

    wall_sec: float
    cpu_sec: float  # of all its processes
    peak_mib: float  # resident memory, of the largest process


def command_alone(words: Sequence[str]) -> Used:
    """Run `slmkit WORDS` with one thread, and measure it from outside. Raises UserError when it fails."""
    search_path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search_path}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-m", "slmkit", *words], env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_sec = time.perf_counter() - start
        said.seek(0)
        if process.returncode:
            last = said.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
            raise UserError("the command to time failed", got="\n".join(last) or f"exit code {process.returncode}")
    return Used(wall_sec, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


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
