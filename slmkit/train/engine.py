"""DeepSpeed behind a few functions: process_group, create, micro_step, parts, load.

No other file of `train` imports it.

How gradients add up: the loss of a micro-batch is already its share of the loss of the whole global batch, so the
gradient of the step is the plain sum over micro-batches and ranks. DeepSpeed averages over ranks and divides by the
accumulation steps; the first is undone by multiplying the loss with the world size, the second switched off.

A step whose gradient is not finite on any process is skipped by all of them: DeepSpeed finds it in the norm that it
computes anyway, clears the gradients, and counts the step without an update.

ZeRO-3 spreads the weights, too, and puts a weight together only inside the forward and backward of the module that
holds it. Everywhere else `weights` and `plain_module` give whole ones.

Invariant: a step with any split into ranks and micro-batches has the gradient of one process with one micro-batch.

Example:
    with process_group(world) as device:
        engine = TrainEngine.create(model, settings, optimizer_config, world)
        for batch in micro_batches:
            output = engine.micro_step(batch.to(device), lr=1e-4)
        parts = engine.parts(root / "step-100", copy)
"""

import contextlib
import importlib
import io
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import cpp_extension

from slmkit import group
from slmkit.checkpoints import checkpoint
from slmkit.config.train import OptimizerConfig
from slmkit.errors import UserError
from slmkit.log import get_logger
from slmkit.model.pretrained import seeded
from slmkit.world import World, agent_attempt, free_port

logger = get_logger(__name__)
SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def process_group(world: World) -> Iterator[torch.device]:
    """Join the process group (nccl with GPUs, gloo without) for the block; gives this process's device.

    Without a launcher, this process becomes a world of one at a free port of its own. Inside another such block it
    uses the group there is. Raises UserError, in every process, where two of them have the same GPU.
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
    # What DeepSpeed reads from the environment, also where no launcher or only srun has set it.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    if world.size == 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    backend, attempt = "nccl" if on_gpu else "gloo", agent_attempt()
    if attempt is not None:
        # torchrun serves one store for all its attempts, where torch would find the addresses of the attempt before.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        served = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
        store = dist.PrefixStore(f"slmkit/attempt {attempt}", served)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
    # DeepSpeed prints that its operator is built, even if it was before.
    with contextlib.redirect_stdout(io.StringIO()), _compiling_announced():
        _deepspeed().init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    if on_gpu:
        gpu = str(torch.cuda.get_device_properties(device).uuid)
        refuse_shared(group.from_all((socket.gethostname(), gpu)))
    else:
        # Processes of one machine share memory, 66 MiB each, which DeepSpeed would leave behind. Once all have it open
        # its name can go; the memory itself goes with the last of them, however that ends.
        dist.barrier()
        place = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}"
        buffer = f"deepspeed_allreduce_buffer_{os.getuid()}_{place}_{world.rank}"
        (SHARED_MEMORY / buffer).unlink(missing_ok=True)
    yield device
    group.leave()


def refuse_shared(places: Sequence[tuple[str, str]]) -> None:
    """Raise UserError where two processes have the same (machine, GPU); `places` are those of all, by rank."""
    for place in places:
        sharing = [rank for rank, other in enumerate(places) if other == place]
        if len(sharing) > 1:
            raise UserError(
                f"several processes are on one GPU of {place[0]}",
                got=f"ranks {', '.join(map(str, sharing))} on GPU {place[1]}",
                expected="one process per GPU",
                next_step="start fewer processes on this machine, or give the job more GPUs",
            )


class TrainEngine:
    """A model in training, spread over the process group."""

    def __init__(self, engine: Any, world: World) -> None:
        self._engine, self._world = engine, world
        self.before_update: Callable[[], None] = lambda: None  # called before weights and moments change

    @staticmethod
    def create(
        model: torch.nn.Module,
        settings: dict[str, Any],
        optimizer: OptimizerConfig,
        world: World,
        *,
        universal: bool = False,
    ) -> "TrainEngine":
        """Hand `model` to DeepSpeed. `settings` come from `deepspeed_settings`. The first process's weights count.

        With `universal`, `load` reads what `to_universal` wrote; saving is the same.
        """
        adamw = torch.optim.AdamW(
            parameter_groups(model, optimizer.weight_decay),
            lr=optimizer.lr,
            betas=(optimizer.betas[0], optimizer.betas[1]),
            eps=optimizer.eps,
            fused=torch.cuda.is_available(),
        )
        if universal:
            settings = {**settings, "checkpoint": {**settings.get("checkpoint", {}), "load_universal": True}}
        # ZeRO-1 in bf16 prints how much memory is in use.
        with contextlib.redirect_stdout(io.StringIO()), _compiling_announced():
            engine, *_ = _deepspeed().initialize(model=model, optimizer=adamw, config=settings)
        return TrainEngine(engine, world)

    @property
    def module(self) -> Any:
        """The model, for its config and for a forward pass that all processes take part in."""
        return self._engine.module

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient, before clipping; infinite if the step was skipped."""
        return float(self._engine.get_global_grad_norm())

    @property
    def skipped(self) -> bool:
        """Whether the last step left weights, moments and their count of updates as they were, in all processes."""
        return bool(self._engine.optimizer.overflow)

    @property
    def _is_spread(self) -> bool:
        """Whether every process holds only its share of the weights (ZeRO-3)."""
        return bool(self._engine.zero_optimization_partition_weights())

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter by name, whole, on the device; a tied one under its first name. All processes must take all.

        A value is good until the next is asked for.
        """
        gathered = _deepspeed().zero.GatheredParameters
        for name, parameter in self.module.named_parameters():
            with gathered([parameter], enabled=self._is_spread):
                yield name, parameter.detach()

    @contextmanager
    def plain_module(self) -> Iterator[Any]:
        """In the first process the model as it is now, to be used alone; None in the others. All must enter the block.

        Where the weights are spread this is a copy, there only inside the block.
        """
        is_first = self._world.is_first
        if not self._is_spread:
            yield self.module if is_first else None
            return
        copy = None
        if is_first:
            with seeded(0):
                copy = type(self.module)(self.module.config)
            some = next(self.module.parameters())
            copy = copy.to(some.device, some.dtype).train(self.module.training)
        targets = dict(copy.named_parameters()) if copy is not None else {}
        with torch.no_grad():
            for name, weight in self.weights():
                if is_first:
                    targets[name].copy_(weight)
        yield copy

    def micro_step(self, batch: Any, *, lr: float) -> Any:
        """Forward and backward of one micro-batch; the last one of a step also updates the weights, with rate `lr`.

        Returns what the model returned; its `loss` is the part of the global batch's loss that this micro-batch adds.
        """
        output = self._engine(batch)
        self._engine.backward(output.loss * self._world.size, scale_wrt_gas=False)
        for parameters in self._engine.optimizer.param_groups:
            parameters["lr"] = lr
        is_last = self._engine.is_gradient_accumulation_boundary()
        self.before_update()
        self._engine.step()
        if is_last and self.skipped:
            # DeepSpeed (0.19.8) keeps the accumulated gradient of ZeRO-1 and ZeRO-2 with the optimizer in host memory,
            # in bf16: the next steps would add to one that is not finite, and be skipped for ever.
            kept = getattr(self._engine.optimizer, "averaged_gradients", {})
            for parameters in kept:
                kept[parameters] = None
        return output

    def parts(self, path: Path, copy: Callable[[Any], Any]) -> list[tuple[str, Any]]:
        """This process's part of checkpoint `path`: (file name, value for torch.save) of all DeepSpeed would write.

        Nothing is written, so no disk can end this in one process and not in the others. Each value goes through `copy`
        before the next is made; it holds until `before_update` is called.
        """
        from deepspeed.checkpoint import constants

        version = {constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE}
        client_state = {constants.UNIVERSAL_CHECKPOINT_INFO: version}
        taker, engine = _Taker(path, copy), self._engine
        own, engine.checkpoint_engine = engine.checkpoint_engine, taker
        engine._copy_recovery_script = taker.leave_out
        try:
            engine.save_checkpoint(str(path.parent), tag=path.name, client_state=client_state, save_latest=False)
        finally:
            engine.checkpoint_engine = own
            del engine._copy_recovery_script
        return taker.parts

    def load(self, root: Path, name: str) -> None:
        """Continue from checkpoint `root/name`: weights, moments and the count of steps, not the optimizer's options.

        It was written by as many processes or, for an engine created with `universal`, by `to_universal`. Raises
        UserError if it cannot be read.
        """
        groups = self._engine.optimizer.param_groups
        options = [{name: value for name, value in each.items() if name != "params"} for each in groups]
        self.before_update()
        try:
            # DeepSpeed's BF16_Optimizer prints a line here.
            with contextlib.redirect_stdout(io.StringIO()), checkpoint.no_code_runs():
                found, _ = self._engine.load_checkpoint(str(root), tag=name)
        except (*checkpoint.UNREADABLE, AssertionError, AttributeError, TypeError) as error:
            raise checkpoint.unreadable(root / name, error) from error
        if found is None:
            raise checkpoint.unreadable(root / name, "it holds no weights")
        # When DeepSpeed (0.19.8) loads the universal form for ZeRO-3, every group of parameters gets the options of the
        # first, so that norms and biases would decay; and all groups share one tensor with the count of updates, so
        # that each would count the updates of all. A fused optimizer wants that tensor beside the weights.
        optimizer = self._engine.optimizer
        for group_options, own in zip(optimizer.param_groups, options, strict=True):
            group_options.update(own)
        for parameter, state in optimizer.state.items():
            place = parameter.device if options[0]["fused"] else "cpu"
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).detach().clone().to(place)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (norms and biases) do not. A tied parameter counts once."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class _Taker:
    """Stands in for DeepSpeed's checkpoint engine during a save, and takes what that would write."""

    def __init__(self, path: Path, copy: Callable[[Any], Any]) -> None:
        self.path, self.copy = path, copy
        self.parts: list[tuple[str, Any]] = []

    def save(self, state_dict: Any, path: str) -> None:
        self.parts.append((str(Path(path).relative_to(self.path)), self.copy(state_dict)))

    def is_decoupled(self) -> bool:
        return False

    def leave_out(self, *args: Any, **kwargs: Any) -> None:
        """Of directories, commits and DeepSpeed's copy of its own script."""

    create = makedirs = commit = leave_out


@contextmanager
def _compiling_announced() -> Iterator[None]:
    """Say so when torch compiles an operator of DeepSpeed in the block: nothing else would, for minutes."""
    load = cpp_extension.load

    def announced(name: str, *args: Any, **kwargs: Any) -> Any:
        if not Path(cpp_extension._get_build_directory(name, False), f"{name}.so").exists():
            logger.info("compiling DeepSpeed's operator %s: once on a machine, up to some minutes", name)
        return load(name, *args, **kwargs)

    cpp_extension.load = announced
    try:
        yield
    finally:
        cpp_extension.load = load


def _deepspeed() -> Any:
    import deepspeed
    from deepspeed.runtime import compiler

    # What DeepSpeed asks about every optimizer makes it import Muon, whose kernels it compiles, which loads all of
    # torch's compiler: 3 CPU seconds, for an optimizer that is not used here.
    compile_kernel, compiler.compile = compiler.compile, lambda **_: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_kernel
    is_verbose = logger.isEnabledFor(logging.DEBUG)
    logging.getLogger("DeepSpeed").setLevel(logging.INFO if is_verbose else logging.WARNING)
    return deepspeed
