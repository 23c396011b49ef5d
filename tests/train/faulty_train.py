"""One rank of `slmkit train` to which something happens: python faulty_train.py FAULT RANK STEP [train options].

FAULT names a function below; it happens once, in rank RANK, at step STEP, and not again when torchrun restarts it.
"""

import dataclasses
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slmkit.checkpoints.saver import Saver
from slmkit.cli.main import main
from slmkit.data.shards import ShardReader
from slmkit.model.slm import SpeechLM
from slmkit.train import loop
from slmkit.train.engine import TrainEngine

HEADROOM_BYTES = 200 * 2**20
OTHER_OPTIONS: list[str] = []


def before(owner: Any, name: str, act: Callable[[], None]) -> None:
    """Let `act` happen before every call of a function."""
    whole = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        act()
        return whole(*args, **kwargs)

    setattr(owner, name, wrapped)


def in_step(step: int, act: Callable[[], None]) -> None:
    """Let `act` happen once, in the first micro-batch of a step."""
    micro_step, done = TrainEngine.micro_step, []

    def wrapped(trainer: TrainEngine, batch: Any, **options: Any) -> Any:
        if trainer._engine.global_steps + 1 == step and not done:
            done.append(step)
            act()
        return micro_step(trainer, batch, **options)

    TrainEngine.micro_step = wrapped  # type: ignore[method-assign]


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def none(step: int) -> None:
    pass


def other_options(step: int) -> None:
    """This rank is started with another learning rate and another number of steps."""
    OTHER_OPTIONS.extend(["optimizer.lr=0.5", "steps=9"])


def other_files(step: int) -> None:
    """A path holds another corpus on this machine."""
    prepare = loop.prepare_run

    def wrapped(*args: Any) -> Any:
        run = prepare(*args)
        return dataclasses.replace(run, facts={**run.facts, "data.sources": [{"sha256": "other"}]})

    loop.prepare_run = wrapped


def signal_at_start(step: int) -> None:
    before(loop, "start_engine", lambda: (send(signal.SIGTERM)(), time.sleep(100)))


def signal_in_step(step: int) -> None:
    """As Slurm sends it: to the process and to its workers."""

    def send_to_all() -> None:
        workers = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        assert workers
        for pid in [*map(int, workers), os.getpid()]:
            os.kill(pid, signal.SIGTERM if pid != os.getpid() else signal.SIGUSR1)
            os.kill(pid, signal.SIGUSR1)

    in_step(step, send_to_all)


def signal_in_evaluation(step: int) -> None:
    before(loop, "held_out_losses", send(signal.SIGINT))


def signal_in_save(step: int) -> None:
    before(Saver, "save", send(signal.SIGTERM))


def bad_loss(step: int) -> None:
    """The loss of one micro-batch is no number."""
    forward, bad = SpeechLM.forward, []
    in_step(step, lambda: bad.append(step))

    def wrapped(model: SpeechLM, batch: Any) -> Any:
        output = forward(model, batch)
        return output._replace(loss=output.loss * float("nan")) if bad and bad.pop() else output

    SpeechLM.forward = wrapped  # type: ignore[method-assign]


def bad_gradient(step: int) -> None:
    """The loss is a number, a gradient is not."""
    forward, bad = SpeechLM.forward, []
    in_step(step, lambda: bad.append(step))

    def wrapped(model: SpeechLM, batch: Any) -> Any:
        output = forward(model, batch)
        if bad and bad.pop():
            output.loss.register_hook(lambda gradient: gradient * float("inf"))
        return output

    SpeechLM.forward = wrapped  # type: ignore[method-assign]


def hang(step: int) -> None:
    """A file system that does not answer."""
    reads = []

    def wait() -> None:
        reads.append(1)
        if len(reads) == 8:
            time.sleep(1000)

    before(ShardReader, "read", wait)


def stop(step: int) -> None:
    """A process that does not run any more and is not dead either, as on a machine that lost its network."""
    in_step(step, send(signal.SIGSTOP))


def die(step: int) -> None:
    in_step(step, send(signal.SIGKILL))


def device_memory(step: int) -> None:
    def refuse() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    before(TrainEngine, "micro_step", refuse)


def host_memory(step: int) -> None:
    """The system gives no more memory, and the step asks for some."""

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used_bytes = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + HEADROOM_BYTES, resource.RLIM_INFINITY))
        torch.zeros(2 * HEADROOM_BYTES)

    micro_step = TrainEngine.micro_step

    def wrapped(trainer: TrainEngine, batch: Any, **options: Any) -> Any:
        limit()
        return micro_step(trainer, batch, **options)

    TrainEngine.micro_step = wrapped  # type: ignore[method-assign]


if __name__ == "__main__":
    fault, rank, step, *options = sys.argv[1:]
    if os.environ["RANK"] == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        globals()[fault](int(step))
    sys.exit(main(["train", *options, *OTHER_OPTIONS]))
