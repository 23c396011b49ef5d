"""A run of two processes in one of which something goes wrong, for tests."""

from pathlib import Path

import yaml
from train.place import Place
from train.ranks import finish_ranks, start_ranks

SCRIPT = str(Path(__file__).with_name("faulty_train.py"))
STEPS = 12
TIMEOUT_SEC = 4
WITH_WORKERS = ("signal_in_step",)


def start_two(
    place: Place, name: str, fault: str, rank: int = 0, step: int = 0, **change: object
) -> tuple[list[int], str]:
    """Exit codes of the two processes, and all they wrote to standard error. `place` needs a corpus "other"."""
    data = {"eval_corpus": str(place.directory / "other"), "num_workers": 1 if fault in WITH_WORKERS else 0}
    evaluated = {"data": data, "eval_every_steps": 5}
    values = {"steps": STEPS, "save_every_steps": 8, "hang_timeout_sec": TIMEOUT_SEC, **evaluated, **change}
    file = place.directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(place.config(name, **values)))
    command = [SCRIPT, fault, str(rank), str(step), "--config", str(file)]
    processes = start_ranks(2, command)
    if fault == "stop":
        processes[1 - rank].wait(timeout=300)
        processes[rank].kill()
    done = finish_ranks(processes)
    return [code for code, _, _ in done], "\n".join(errors for _, _, errors in done)
