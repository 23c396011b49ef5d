"""One rank of the training tests: works through a JSON list of tasks inside one process group.

    python train_worker.py TASKS.json RESULTS.json

A task is {"kind": ..., "config": {...}} with a run config as plain values. The first rank writes one result per task.
"""

import copy as copying
import functools
import io
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from liger_stand_in import stand_in
from torch.utils._python_dispatch import TorchDispatchMode

from slmkit import group
from slmkit.checkpoints import checkpoint
from slmkit.checkpoints.host_copy import HostCopy
from slmkit.config.load import from_dict, to_dict
from slmkit.config.run_dir import MARKER, complete_steps
from slmkit.config.train import TrainConfig
from slmkit.errors import UserError
from slmkit.export import consolidate
from slmkit.model.fused import liger_kernels
from slmkit.model.pretrained import from_base
from slmkit.train import run as run_module
from slmkit.train import start
from slmkit.train.engine import TrainEngine, parameter_groups, process_group
from slmkit.train.loop import Training, planned_batches, train
from slmkit.train.pace import Pace
from slmkit.train.run import prepare_run
from slmkit.world import World

WORLD = World.from_env()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_train(config: TrainConfig, task: dict[str, Any]) -> Any:
    train(config)


def run_train_compiled(config: TrainConfig, task: dict[str, Any]) -> Any:
    """With a backend of torch.compile; how many graphs it made."""
    from torch._dynamo.utils import counters

    from slmkit.model import compiled

    compiled.BACKEND = task["backend"]
    compiled._compiled_layer.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    train(config)
    assert not counters["graph_break"], counters["graph_break"]
    return {"graphs": counters["stats"]["unique_graphs"]}


def run_train_fused(config: TrainConfig, task: dict[str, Any]) -> Any:
    """With plain functions in place of liger-kernel's, which need a GPU; how often each was called."""
    counted: Counter[str] = Counter()
    sys.modules.update(stand_in(counted))
    start.liger_kernels = functools.partial(liger_kernels, on_gpu=True)
    train(config)
    return counted


def run_train_killed_between_checkpoints(config: TrainConfig, task: dict[str, Any]) -> Any:
    """Killed when the save that was begun before has ended."""

    def speak(training: Training) -> None:
        while complete_steps(config.run_dir) != [task["saved"]]:
            time.sleep(0.01)
        kill_self()

    Training.speak = speak
    run_module.speech_samples = lambda *_: None
    train(config)


def run_train_killed_in_save(config: TrainConfig, task: dict[str, Any]) -> Any:
    """Every file of the step is written, the marker is not."""
    whole_finish = checkpoint.finish

    def finish(run_dir: Path, step: int, *rest: Any) -> None:
        if step == task["at"]:
            kill_self()
        whole_finish(run_dir, step, *rest)

    checkpoint.finish = finish
    train(config)


class Stopped(Exception):
    """Ends a run between two steps."""


def run_train_noting_samples(config: TrainConfig, task: dict[str, Any]) -> Any:
    """Train, and append to RUN/samples-RANK.jsonl the keys of every micro-batch, with DeepSpeed's own count of steps.

    With `at`, the run stops after that step, whether or not that step saved.
    """
    Path(config.run_dir).mkdir(exist_ok=True)
    micro_step = TrainEngine.micro_step
    with open(Path(config.run_dir) / f"samples-{WORLD.rank}.jsonl", "a") as notes:

        def noting(trainer: TrainEngine, batch: Any, *, lr: float) -> Any:
            step = trainer._engine.global_steps + 1
            notes.write(json.dumps({"step": step, "processes": WORLD.size, "keys": batch.keys}) + "\n")
            return micro_step(trainer, batch, lr=lr)

        def stopping(training: Training, *rest: Any) -> Any:
            agreed = after_step(training, *rest)
            if training.step == task.get("at"):
                raise Stopped
            return agreed

        after_step = Training.after_step
        TrainEngine.micro_step, Training.after_step = noting, stopping
        try:
            train(config)
        except Stopped:
            pass
        finally:
            TrainEngine.micro_step, Training.after_step = micro_step, after_step


def run_train_killed_in_conversion(config: TrainConfig, task: dict[str, Any]) -> Any:
    """Killed when some of the files are written."""
    whole_save, files = torch.save, []

    def save(state: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        whole_save(state, path, *args, **kwargs)
        files.append(path)
        if len(files) == 5:
            kill_self()

    torch.save = save
    train(config)


def run_in_first(config: TrainConfig, task: dict[str, Any]) -> Any:
    """Work that takes longer than processes wait in one operation, and ends with an error."""
    group.POLL_SEC, ran, start = 0.05, torch.zeros(1), time.monotonic()

    def work() -> None:
        time.sleep(0.5)
        ran.add_(1)
        raise UserError("no", next_step="go")

    try:
        group.in_first(work)
    except UserError as error:
        errors = torch.tensor([1.0 if error.next_step == "go" else 0.0])
    waits = time.monotonic() - start >= 0.5
    group.sum_over_ranks(errors), group.sum_over_ranks(ran)
    return {"errors": errors.item(), "ran": ran.item(), "waits": waits}


def run_error(config: TrainConfig, task: dict[str, Any]) -> Any:
    try:
        train(config)
    except UserError as error:
        return str(error)
    return None


def run_damaged(config: TrainConfig, task: dict[str, Any]) -> Any:
    """Continue from a checkpoint of which every size is right and the content of one file is not.

    Its marker is that of an older slmkit, which knew sizes only.
    """
    messages = []
    marker = Path(config.run_dir) / "checkpoints" / task["at"] / MARKER
    said = json.loads(marker.read_text())
    marker.write_text(json.dumps({name: said[name] for name in ("step", "files", "state")}))
    for pattern in ("zero_pp*", "mp_rank*"):
        file = next((Path(config.run_dir) / "checkpoints" / task["at"]).glob(pattern))
        content = file.read_bytes()
        for kept in (0, len(content) // 2):
            file.write_bytes(content[:kept] + bytes(len(content) - kept))
            messages.append(run_error(config, task))
        file.write_bytes(content)
    return messages


def run_disk_error(config: TrainConfig, task: dict[str, Any]) -> Any:
    """The disk refuses the file of the optimizer, once as the system says it, once as torch's archive writer does."""
    messages = []
    whole_save = torch.save
    for error in (
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file"),
        ValueError("a bug"),
    ):

        def refuse(*args: Any, error: Exception = error, **kwargs: Any) -> None:
            raise error

        torch.save = refuse
        try:
            train(config)
        except (UserError, ValueError) as caught:
            messages.append(f"{type(caught).__name__}: {caught}")
        torch.save = whole_save
    return messages


def run_disk_full_for_a_while(config: TrainConfig, task: dict[str, Any]) -> Any:
    """The disk refuses all of one step."""
    whole_write = checkpoint.write

    def write(path: Path, value: Any) -> int:
        with checkpoint.writing(path):
            if path.parent.name == task["at"]:
                raise OSError(28, "No space left on device")
        return whole_write(path, value)

    checkpoint.write = write
    train(config)
    checkpoint.write = whole_write
    return sorted(path.name for path in (Path(config.run_dir) / "checkpoints").iterdir())


def run_files(config: TrainConfig, task: dict[str, Any]) -> Any:
    """Write a state as DeepSpeed itself does and as the saver does; are the files of the first process the same?"""
    run = prepare_run(config, WORLD)
    model = from_base(config.base, codec=run.codec, seed=config.seed, **to_dict(config.model))
    trainer = TrainEngine.create(model, run.settings, config.optimizer, WORLD)
    for batch in next(planned_batches(run, 0, Pace()))[2]:
        trainer.micro_step(batch, lr=config.optimizer.lr)
    ours, theirs = (Path(config.run_dir) / kind / "step-1" for kind in ("ours", "theirs"))
    trainer._engine.save_checkpoint(str(theirs.parent), tag=theirs.name, save_latest=False)
    copy = HostCopy()
    copy.begin()
    parts = trainer.parts(ours, copy)
    copy.make()
    same = []
    for file, value in parts:
        checkpoint.write(ours / file, value)
        mine, other = (torch.load(path / file, weights_only=False) for path in (ours, theirs))
        mine.pop("universal_checkpoint_info", None)  # only the saver adds it
        same.append(content(mine) == content(other))
    group.barrier()
    names = [sorted(path.name for path in directory.iterdir()) for directory in (ours, theirs)]
    return {"same": same, "names": names}


def run_reads(config: TrainConfig, task: dict[str, Any]) -> Any:
    """Who asks for a number in the micro-batches of two steps: of slmkit, DeepSpeed and torch's optimizer, by name."""
    run = prepare_run(config, WORLD)
    model = from_base(config.base, codec=run.codec, seed=config.seed, **to_dict(config.model))
    trainer = TrainEngine.create(model, run.settings, config.optimizer, WORLD)
    asked: list[list[str]] = []
    for _, _, batches in itertools.islice(planned_batches(run, 0, Pace()), 2):
        for batch in batches:
            with Asking() as asking:
                trainer.micro_step(batch, lr=config.optimizer.lr)
            asked.append(asking.names)
    return asked


class Asking(TorchDispatchMode):
    """Notes which package asks for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            files = [frame.filename for frame in reversed(traceback.extract_stack())]
            known = [name for file in files for name in ("deepspeed", "torch/optim", "slmkit") if f"/{name}/" in file]
            self.names.append(known[0])
        return func(*args, **(kwargs or {}))


def content(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def run_parity(config: TrainConfig, task: dict[str, Any]) -> Any:
    """Train a plain copy of the model on whole global batches, alone, beside DeepSpeed's share of them."""
    run = prepare_run(config, WORLD)
    alone = prepare_run(config_of({**to_dict(config), "micro_rows": config.global_rows}), World())
    model = from_base(config.base, codec=run.codec, seed=config.seed, **to_dict(config.model))
    plain = copying.deepcopy(model)
    tied = plain.lm_model.lm_head.weight is plain.lm_model.model.embed_tokens.weight
    start = [parameter.detach().clone() for parameter in plain.parameters()]
    options = config.optimizer
    adamw = torch.optim.AdamW(
        parameter_groups(plain, options.weight_decay), lr=options.lr, betas=options.betas[:2], eps=options.eps
    )
    trainer = TrainEngine.create(model, run.settings, options, WORLD)
    worst, norms = 0.0, []
    for (_, _, batches), (_, _, whole) in zip(
        planned_batches(run, 0, Pace()), planned_batches(alone, 0, Pace()), strict=True
    ):
        for batch in batches:
            trainer.micro_step(batch, lr=options.lr)
        adamw.zero_grad()
        for batch in whole:
            plain(batch).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), options.clip_norm).item()
        adamw.step()
        norms.append((trainer.grad_norm, norm))
        pairs = zip(trainer.module.parameters(), plain.parameters(), strict=True)
        worst = max(worst, *((a - b).abs().max().item() for a, b in pairs))
    moved = min((a - b).abs().max().item() for a, b in zip(start, plain.parameters(), strict=True))
    return {"worst": worst, "norms": norms, "moved": moved, "tied": tied, "accumulation": run.split.accumulation}


def run_consolidate(config: TrainConfig, task: dict[str, Any]) -> Any:
    consolidate(config.run_dir, task["out"])


def config_of(values: dict[str, Any]) -> TrainConfig:
    return from_dict(TrainConfig, values)


def main() -> None:
    tasks, results = json.loads(Path(sys.argv[1]).read_text()), []
    with process_group(WORLD):
        for task in tasks:
            results.append(globals()["run_" + task["kind"]](config_of(task["config"]), task))
    if WORLD.is_first:
        Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
