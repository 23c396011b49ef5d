"""Times checkpoints: how long training stops for one, written at once and written in the background.

A model of about 75 million parameters (with --size 0.5B of Qwen2.5-0.5B's shape) with its moments trains under
DeepSpeed ZeRO-2, as in `slmkit train`, alone or under a launcher, on GPUs where there are any. First it saves at once,
then in the background, with training steps until the write has ended. All times are the first process's; every save is
counted in full, with flushing to the disk, and every stop of training, with the wait for the copy before the update of
the step after.

Invariant: the last checkpoint is read back and compared with the state in training before a result is printed.

Example:
    torchrun --nproc-per-node 2 -m slmkit bench checkpoint --directory /scratch
    slmkit bench checkpoint --size 0.5B --dtype bfloat16 --saves 2
"""

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from slmkit.bench.batches import make_batch
from slmkit.bench.synthetic import QWEN, ModelShape, model_config
from slmkit.bench.train import FULL as TRAINED
from slmkit.bench.train import TOY
from slmkit.checkpoints.saver import Saver
from slmkit.config import run_dir as runs
from slmkit.config.train import OptimizerConfig
from slmkit.group import barrier, from_first, sum_over_ranks
from slmkit.model.pretrained import seeded
from slmkit.model.slm import SpeechLM
from slmkit.texts import positive
from slmkit.train.engine import TrainEngine, process_group
from slmkit.world import World

SUMMARY = "how long training stops for a checkpoint, written at once and in the background"
FULL = replace(TRAINED, hidden_size=384, intermediate_size=1536)
SMALL = replace(TOY, base_tokens=20_000, hidden_size=128, intermediate_size=512)
SIZES = {"75M": FULL, "0.5B": QWEN}
REQUIRED_SHARE = 0.1  # of the time of a save at once
LR = 1e-4
UTTERANCES_SEC = (0.5, 0.5)
WARM_UP_STEPS = 2
SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
HALF = {  # as in ds_configs
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--directory", help="where to write, on the disk of your runs (default: the temporary one)")
    parser.add_argument("--saves", type=positive, default=5, help="timed saves of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=5, help="steps timed without a save (default: %(default)s)")
    parser.add_argument("--size", choices=tuple(SIZES), default="75M", help="of the model (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a toy model; its ratio means little")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    world = World.from_env()
    shape, half = SMALL if args.quick else SIZES[args.size], args.dtype == "bfloat16"
    with process_group(world) as device, shared_directory(args.directory, world) as directory:
        result = bench_checkpoints(shape, directory, world, device, half=half, saves=args.saves, num_steps=args.steps)
    if world.is_first:
        print(json.dumps(result, indent=2) if args.json else describe(result))
    return 0


@contextlib.contextmanager
def shared_directory(parent: str | None, world: World) -> Iterator[Path]:
    """A directory for the block, the same in every process."""
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(dir=parent)) if world.is_first else None
        yield Path(from_first(own))
        barrier()


def bench_checkpoints(
    shape: ModelShape,
    directory: Path,
    world: World,
    device: torch.device,
    *,
    half: bool = False,
    saves: int,
    num_steps: int,
) -> dict[str, Any]:
    """Seconds of each save and step of both kinds. Every process calls it. `half`: train in bfloat16."""
    side = Side(shape, world, device, half=half)
    side.times(WARM_UP_STEPS)
    quiet = side.times(num_steps)
    with Saver(directory / "at_once", world, keep_last=1, asynchronous=False) as saver:
        at_once = [saver.save(side.trainer, i, {}) for i in range(saves)]
    shutil.rmtree(directory / "at_once", ignore_errors=not world.is_first)
    stalls, busy, written = [], [], []
    with Saver(directory / "background", world, keep_last=1) as saver:
        start = time.perf_counter()
        saver.prepare(side.trainer)
        prepare_sec = time.perf_counter() - start
        for i in range(saves):
            before = saver.stall_sec
            saver.save(side.trainer, i, {})
            busy += side.times(1)  # waits for the copy before its update
            stalls.append(saver.stall_sec - before)
            while sum_over_ranks(torch.tensor([float(saver.is_writing)], device=device)).item():
                busy += side.times(1)
        saver.save(side.trainer, saves, {})
        saver.wait()
        written = saver.poll()
    side.check(directory / "background", saves)
    at_once_sec, stall_sec = statistics.median(at_once), statistics.median(stalls)
    quiet_sec, busy_sec = statistics.median(quiet), statistics.median(busy)
    return {
        "device": str(device),
        "dtype": "bfloat16" if half else "float32",
        "processes": world.size,
        "parameters": side.num_parameters,
        "checkpoint_bytes": written[-1].num_bytes,
        "at_once_sec": at_once_sec,
        "stall_sec": stall_sec,
        "first_stall_sec": stalls[0],
        "share": stall_sec / at_once_sec,
        "required_share": REQUIRED_SHARE,
        "prepare_sec": prepare_sec,
        "write_sec": statistics.median(outcome.seconds for outcome in written[:-1]),
        "step_sec": quiet_sec,
        "step_while_writing_sec": busy_sec,
        "slower": busy_sec / quiet_sec,
    }


class Side:
    """A model in training on one batch."""

    def __init__(self, shape: ModelShape, world: World, device: torch.device, *, half: bool = False) -> None:
        with seeded(0), device:
            model = SpeechLM(model_config(shape, group=0))
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._batch = make_batch(model, UTTERANCES_SEC, seed=world.rank).to(device)
        settings = {**SETTINGS, **(HALF if half else {}), "train_batch_size": world.size}
        self.trainer = TrainEngine.create(model, settings, OptimizerConfig(), world)

    def times(self, num_steps: int) -> list[float]:
        """Seconds of each of so many steps."""
        seconds = []
        for _ in range(num_steps):
            start = time.perf_counter()
            self.trainer.micro_step(self._batch, lr=LR).loss.item()  # waits for the device
            seconds.append(time.perf_counter() - start)
        return seconds

    def check(self, run_dir: Path, step: int) -> None:
        """Read the checkpoint of the present state back, and compare."""
        weights = [parameter.detach().clone() for parameter in self.trainer.module.parameters()]
        self.times(1)
        self.trainer.load(runs.root(run_dir), runs.name(step))
        for parameter, weight in zip(self.trainer.module.parameters(), weights, strict=True):
            assert torch.equal(parameter, weight), "the checkpoint does not hold the state that was saved"


def describe(result: dict[str, Any]) -> str:
    """The result as lines for a reader."""
    lines = [
        f"{result['device']}, {result['dtype']}, {result['processes']} processes, "
        f"{result['parameters'] / 1e6:.1f} M parameters, checkpoint of {result['checkpoint_bytes'] / 2**20:.0f} MiB",
        f"training stops for {result['at_once_sec']:.3f} s when saving at once, "
        f"{result['stall_sec']:.3f} s in the background (the first time {result['first_stall_sec']:.3f} s): "
        f"{100 * result['share']:.1f} %, required {100 * result['required_share']:.0f} %",
        f"memory is prepared in {result['prepare_sec']:.3f} s; the background writes for {result['write_sec']:.3f} s",
        f"a step takes {result['step_while_writing_sec']:.3f} s while it writes, "
        f"{result['step_sec']:.3f} s otherwise: {result['slower']:.2f} times",
    ]
    return "\n".join(lines)
