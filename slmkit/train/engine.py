"""DeepSpeed behind a few verbs: process_group, create, micro_step, save, load. No other file of `train` imports it.

How gradients add up: the loss of a micro-batch is already its share of the loss of the whole global batch, so the
gradient of the step is the plain sum over micro-batches and ranks. DeepSpeed averages over ranks and divides by the
accumulation steps; the first is undone by multiplying the loss with the world size, the second switched off.

Invariant: a step with any split into ranks and micro-batches has the gradient of one process with one micro-batch.

Example:
    with process_group(world) as device:
        engine = Engine.create(model, settings, optimizer_config, world)
        for batch in micro_batches:
            output = engine.micro_step(batch.to(device), lr=1e-4)
        engine.save(root, "step-100")
"""

import logging
import os
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from slmkit.config.train import OptimizerConfig
from slmkit.errors import UserError
from slmkit.files import disk_error
from slmkit.world import World

UNREADABLE = (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError)  # torch.load of garbage


@contextmanager
def process_group(world: World) -> Iterator[torch.device]:
    """Join the process group (nccl with GPUs, gloo without) for the block; gives this process's device.

    Without a launcher, this process becomes a world of one at a free port of its own. Inside another such block it
    uses the group there is.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if dist.is_initialized():
        yield device
        return
    if on_gpu:
        torch.cuda.set_device(device)
    elif world.size > 1:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    _export(world, device.type)
    _deepspeed().init_distributed("nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
    yield device
    dist.barrier()
    dist.destroy_process_group()


def from_first(value: Any) -> Any:
    """The first process's `value`, in every process."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over all processes, in place."""
    dist.all_reduce(values)
    return values


def barrier() -> None:
    """Wait for all processes."""
    dist.barrier()


class Engine:
    """A model in training, spread over the process group."""

    def __init__(self, engine: Any, world: World) -> None:
        self._engine, self._world = engine, world

    @staticmethod
    def create(model: torch.nn.Module, settings: dict[str, Any], optimizer: OptimizerConfig, world: World) -> "Engine":
        """Hand `model` to DeepSpeed. `settings` come from `deepspeed_settings`. The first process's weights count."""
        adamw = torch.optim.AdamW(
            parameter_groups(model, optimizer.weight_decay),
            lr=optimizer.lr,
            betas=(optimizer.betas[0], optimizer.betas[1]),
            eps=optimizer.eps,
            fused=torch.cuda.is_available(),
        )
        engine, *_ = _deepspeed().initialize(model=model, optimizer=adamw, config=settings)
        return Engine(engine, world)

    @property
    def module(self) -> Any:
        """The model, for evaluation."""
        return self._engine.module

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient, before clipping."""
        return float(self._engine.get_global_grad_norm())

    def micro_step(self, batch: Any, *, lr: float) -> Any:
        """Forward and backward of one micro-batch; the last one of a step also updates the weights, with rate `lr`.

        Returns what the model returned; its `loss` is the part of the global batch's loss that this micro-batch adds.
        """
        output = self._engine(batch)
        self._engine.backward(output.loss * self._world.size, scale_wrt_gas=False)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return output

    def save(self, root: Path, name: str) -> None:
        """Write this process's part of checkpoint `root/name`. It is no checkpoint until its marker is written.

        Raises UserError when the disk refuses.
        """
        from deepspeed.checkpoint import constants

        version = {constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE}
        client_state = {constants.UNIVERSAL_CHECKPOINT_INFO: version}
        try:
            self._engine.save_checkpoint(str(root), tag=name, client_state=client_state, save_latest=False)
        except OSError as error:
            raise disk_error(root / name, error) from error
        except RuntimeError as error:  # how torch.save names a full disk
            if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                raise
            raise disk_error(root / name, OSError(str(error))) from error

    def load(self, root: Path, name: str) -> None:
        """Continue from checkpoint `root/name`, written by as many processes. Raises UserError if it cannot be read."""
        try:
            found, _ = self._engine.load_checkpoint(str(root), tag=name)
        except UNREADABLE as error:
            raise _unreadable(root / name, error) from error
        if found is None:
            raise _unreadable(root / name, "it holds no weights")


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (norms and biases) do not. A tied parameter counts once."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _unreadable(path: Path, reason: object) -> UserError:
    return UserError(
        f"DeepSpeed cannot load {path}: {reason}",
        next_step="remove this checkpoint; training continues from the one before",
    )


def _export(world: World, accelerator: str) -> None:
    """What DeepSpeed reads from the environment, also where no launcher or only srun has set it."""
    os.environ.setdefault("DS_ACCELERATOR", accelerator)
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    if world.size == 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _deepspeed() -> Any:
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed
