"""Checks a run config against the files that it names, without torch.

DeepSpeed's JSON file and the run config become one set of settings, each number from one place. The file holds
precision, ZeRO and communication; the run config holds batch, clipping, optimizer and schedule. Where the file names
one of those too it must agree ("auto" always does): what both say differently is refused by name, and so is whatever
else is wrong with the file (`config/deepspeed.py`).

Problems that do not depend on each other are reported together: see `Attempts`.

Example:
    check_files(config, World.from_env())
    settings = deepspeed_settings(config, BatchSplit(global_rows=8, micro_rows=2, world_size=2))
"""

import glob
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from slmkit.assets import deepspeed_file
from slmkit.config.deepspeed import AUTO, read_deepspeed
from slmkit.config.train import OptimizerConfig, TrainConfig
from slmkit.errors import ConfigError, UserError
from slmkit.hub import parse
from slmkit.world import BatchSplit, World

P = ParamSpec("P")
T = TypeVar("T")
HEADS_OF_SLMKIT = ("linear", "mlp", "transformer")


class Attempts:
    """Calls that may each refuse the run config. What they refuse is kept, to be reported at once."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    def __call__(self, check: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `check` gives; None where it raises a UserError."""
        try:
            return check(*args, **kwargs)
        except UserError as error:
            self.errors.append(error)
            return None

    def finish(self) -> None:
        """Raise what was refused: one UserError as it is, several as one ConfigError."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ConfigError("the run cannot start", [str(error).replace("\n", "\n  ") for error in self.errors])


def check_files(config: TrainConfig, world: World, *, is_elsewhere: bool = False) -> None:
    """Refuse what can be refused without torch: the batch, DeepSpeed's file, a head, files that are not there.

    `is_elsewhere`: the run's files are made later, or lie on other machines.
    """
    tried = Attempts()
    tried(_check_head, config.model.head)
    split = tried(BatchSplit, global_rows=config.global_rows, micro_rows=config.micro_rows, world_size=world.size)
    tried(deepspeed_settings, config, split)
    if glob.has_magic(config.run_dir):  # DeepSpeed looks for the files of a checkpoint by such a pattern
        got, expected = config.run_dir, "a path without * ? ["
        tried.errors.append(UserError("run_dir: a run in it could not be continued", got=got, expected=expected))
    data = config.data
    sources = [source.path for source in data.all_sources]
    codec = config.codec if config.speak_every_steps else None
    named = [("base", config.base), ("init_from", config.init_from), ("codec", codec)]
    named += [("data", path) for path in (*sources, data.eval_corpus)]
    missing = [(name, path) for name, path in named if path and "://" not in path and not os.path.exists(path)]
    missing = [(name, path) for name, path in missing if name == "data" or parse(path) is None]
    for name, path in dict.fromkeys(missing) if not is_elsewhere else ():
        tried.errors.append(UserError(f"{name}: there is no such file or directory", got=path))
    tried.finish()


def _check_head(head: str) -> None:
    """Raise UserError where there is no such kind. One that slmkit does not come with is looked up with torch."""
    if head not in HEADS_OF_SLMKIT:
        from slmkit.model.heads.kinds import HEADS

        if head not in HEADS:
            raise UserError("model.head: there is no such kind of head", got=head, expected=", ".join(HEADS))


def deepspeed_settings(config: TrainConfig, split: BatchSplit | None) -> dict[str, Any]:
    """What `deepspeed.initialize` gets.

    Raises UserError where the file cannot be read, ConfigError naming every setting that is wrong, not supported, or
    clashes with the run config.

    Without a `split`, which was refused, there is no number of micro-batches to compare.
    """
    settings, problems = read_deepspeed(deepspeed_file(config.deepspeed))
    # torch's AdamW is what the run config describes; DeepSpeed would otherwise warn or swap in its own on a CPU.
    ours: dict[str, tuple[str, float]] = {
        "train_batch_size": ("global_rows", config.global_rows),
        "train_micro_batch_size_per_gpu": ("micro_rows", config.micro_rows),
        "gradient_clipping": ("optimizer.clip_norm", config.optimizer.clip_norm),
        "zero_allow_untested_optimizer": ("what torch's AdamW needs", True),
        "zero_force_ds_cpu_optimizer": ("what torch's AdamW needs", False),
    }
    if split is not None:
        ours["gradient_accumulation_steps"] = ("global_rows / (micro_rows * world)", split.accumulation)
    clashes = [
        f"{name} is {settings[name]!r:.100}, but {where} is {value}"
        for name, (where, value) in ours.items()
        if not _agree(settings.get(name, AUTO), value)
    ]
    clashes += _optimizer_clashes(settings.pop("optimizer", None), config.optimizer)
    if not problems:
        clashes += _speed_clashes(config, settings)
    if problems or clashes:
        raise ConfigError(f"{config.deepspeed}, with the run config", [*problems, *clashes])
    if config.compile:
        # Gradients of compiled layers that were summed while others were computed became NaN with several versions of
        # DeepSpeed: they come from other streams than it waits for.
        settings["zero_optimization"] = {**settings["zero_optimization"], "overlap_comm": False}
    return {**settings, **{name: value for name, (_, value) in ours.items()}}


def _agree(theirs: Any, ours: Any) -> bool:
    """Whether a value of the file is that of the run config, or leaves it to that; true and 1 are two values."""
    same_kind = isinstance(theirs, bool) == isinstance(ours, bool)
    return bool(theirs == AUTO or (same_kind and theirs == ours))


def precision(settings: dict[str, Any]) -> str:
    """Number format of parameters and activations: "bf16" or "fp32"."""
    return "bf16" if settings.get("bf16", {}).get("enabled", False) is True else "fp32"


def zero_stage(settings: dict[str, Any]) -> int:
    """Stage of ZeRO."""
    return int(settings["zero_optimization"]["stage"])


def _speed_clashes(config: TrainConfig, settings: dict[str, Any]) -> list[str]:
    """Options of the run that its ZeRO stage or float type rules out."""
    clashes = []
    if config.compile and zero_stage(settings) == 3:
        clashes.append(
            "zero_optimization.stage is 3, but compile is true: ZeRO-3 puts weights together in hooks that compiled "
            "layers do not call; choose stage 1 or 2"
        )
    if config.tf32 and precision(settings) == "bf16":
        clashes.append("bf16.enabled is true, but tf32 is true, which is for training in float32")
    return clashes


def _optimizer_clashes(block: Any, optimizer: OptimizerConfig) -> list[str]:
    """A block "optimizer" that says the same as the run config does no harm."""
    if block is None:
        return []
    if not isinstance(block, dict) or not isinstance(block.get("params", {}), dict):
        return [f"optimizer is {block!r:.100}, expected type and params"]
    ours = {
        "lr": optimizer.lr,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    name = block.get("type", "AdamW")
    clashes = [] if name == "AdamW" else [f"optimizer.type is {name!r:.100}, expected AdamW"]
    clashes += [f"optimizer.{key:.100}: unknown key" for key in block if key not in ("type", "params")]
    for name, value in block.get("params", {}).items():
        if name not in ours:
            clashes.append(f"optimizer.params.{name:.100} is {value!r:.100}, which the run config does not know")
        elif not _agree(value, ours[name]):
            clashes.append(f"optimizer.params.{name} is {value!r:.100}, but optimizer.{name} is {ours[name]}")
    return clashes
