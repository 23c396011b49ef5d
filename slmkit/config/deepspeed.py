"""What slmkit supports of a DeepSpeed file: precision, ZeRO, communication.

DeepSpeed itself passes over keys that it does not know at the top of the file, and stops at others with a traceback.
Here a file is checked like any other configuration: unknown keys, wrong types and values out of range are named, all
at once. Sections that would change what the run config or the checkpoints mean are refused with the reason.

The numbers that the run config holds too are not judged here: `train/settings.py` compares them.

Example:
    values, problems = read_deepspeed("ds_configs/zero2_bf16.json")
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator, Field
from pydantic.types import Strict

from slmkit.config.load import MAX_BYTES, Config, from_dict
from slmkit.config.values import Count, Flag, Takes
from slmkit.errors import ConfigError, UserError
from slmkit.files import read_bounded

AUTO = "auto"  # the value of Hugging Face's files for what the program decides


def _whole(value: Any) -> Any:
    """5e8 is a float in JSON, and what DeepSpeed's own examples have."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Elements = Annotated[int, Strict(), BeforeValidator(_whole), Ge(0), Le(2**63 - 1)]
Bucket = Annotated[int, Strict(), BeforeValidator(_whole), Ge(1), Le(2**63 - 1)]
Either = Annotated[Any, Takes("a value, or auto")]
FloatType = Literal["fp32", "bf16"]

# Sections that are not supported, each with the reason. One that is switched off is left out.
UNSUPPORTED = {
    "scheduler": "schedule in the run config holds the learning rate",
    "fp16": "training runs in bf16 or float32",
    "amp": "training runs in bf16 or float32",
    "torch_autocast": "training runs in bf16 or float32",
    "checkpoint": "slmkit writes and reads checkpoints itself",
    "elasticity": "global_rows in the run config is the batch on any number of processes",
    "gradient_allreduce_op": "the loss is a sum over the global batch, which DeepSpeed's mean is turned into",
    "prescale_gradients": "the loss is a sum over the global batch, which DeepSpeed's mean is turned into",
    "gradient_predivide_factor": "the loss is a sum over the global batch, which DeepSpeed's mean is turned into",
    "activation_checkpointing": "activation_checkpointing in the run config switches it on",
    "aio": "nothing is moved to NVMe disks",
    "tensorboard": "slmkit writes TensorBoard files itself, in RUN/tensorboard",
    "wandb": "slmkit writes TensorBoard files and metrics.jsonl",
    "csv_monitor": "slmkit writes TensorBoard files and metrics.jsonl",
    "comet": "slmkit writes TensorBoard files and metrics.jsonl",
    "autotuning": "the run config holds the batch",
    "pipeline": "the model is not cut into stages",
    "tensor_parallel": "the model is not cut into parts",
    "compression_training": "weights are trained as they are",
    "data_efficiency": "the order of the data is slmkit's",
    "curriculum_learning": "the order of the data is slmkit's",
    "progressive_layer_drop": "all layers are trained",
    "sparse_attention": "attention is slmkit's",
    "nebula": "slmkit writes and reads checkpoints itself",
    "flops_profiler": "slmkit logs speed and utilization itself",
    "compile": "compile in the run config compiles the decoder layers",
}


class Bf16File(Config):
    """Parameters, activations and gradients in bfloat16, with float32 weights and moments in the optimizer."""

    enabled: Flag = Field(default=False, description="train in bf16; else in float32")
    check_grad_overflow: Flag = Field(default=True, description="skip steps whose gradient is not finite")
    immediate_grad_update: Flag = Field(default=False, description="copy gradients as soon as they are there")

    def clashes(self) -> Iterator[tuple[bool, str]]:
        yield (
            not self.check_grad_overflow,
            "check_grad_overflow: got false, expected true: a gradient that is not finite must never reach the weights",
        )


class OffloadFile(Config):
    """Where the optimizer's state is."""

    device: Literal["none", "cpu"] = Field(default="none", description="cpu: in host memory")
    pin_memory: Flag = Field(default=True, description="in memory that is never swapped out, for faster copies")
    buffer_count: Count = Field(default=4, description="buffers for copies")
    fast_init: Flag = Field(default=False, description="begin faster")


class NoOffloadFile(Config):
    """Parameters stay on the device."""

    device: Literal["none"] = Field(default="none", description="parameters are on the device")
    pin_memory: Flag = Field(default=True, description="without an effect")


class ZeroFile(Config):
    """ZeRO (Rajbhandari et al. 2020): what is spread over the processes."""

    stage: Annotated[int, Strict(), Ge(1), Le(3)] = Field(
        description="1 spreads the optimizer's state, 2 gradients as well, 3 parameters as well"
    )
    contiguous_gradients: Flag = Field(default=True, description="copy gradients to one buffer as they come")
    reduce_scatter: Flag = Field(default=True, description="every process gets the sum of its own part only")
    reduce_bucket_size: Bucket = Field(default=500_000_000, description="numbers that are summed at once")
    use_multi_rank_bucket_allreduce: Flag = Field(default=True, description="sum buckets of several processes at once")
    allgather_partitions: Flag = Field(default=True, description="gather new weights in one go, not by broadcasts")
    allgather_bucket_size: Bucket = Field(default=500_000_000, description="numbers that are gathered at once")
    overlap_comm: Flag | None = Field(default=None, description="sum gradients while others are computed")
    compute_grad_norm: Flag = Field(default=True, description="compute the norm of the gradient")
    round_robin_gradients: Flag = Field(default=False, description="share out copies of gradients to host memory")
    ignore_unused_parameters: Flag = Field(default=True, description="go on where a parameter has no gradient")
    offload_optimizer: OffloadFile | None = Field(default=None, description="optimizer in host memory")
    offload_param: NoOffloadFile | None = Field(default=None, description="parameters in host memory: not supported")
    sub_group_size: Bucket = Field(default=1_000_000_000, description="parameters that are updated at once")
    stage3_prefetch_bucket_size: Elements = Field(default=50_000_000, description="numbers that are fetched ahead")
    stage3_param_persistence_threshold: Elements = Field(
        default=100_000, description="smaller parameters are not spread"
    )
    stage3_model_persistence_threshold: Elements = Field(
        default=2**63 - 1, description="most numbers of parameters that are not spread"
    )
    stage3_max_live_parameters: Elements = Field(default=1_000_000_000, description="most parameters that are whole")
    stage3_max_reuse_distance: Elements = Field(
        default=1_000_000_000, description="a parameter that is needed again so soon stays whole"
    )
    stage3_gather_16bit_weights_on_model_save: Flag = Field(default=False, description="without an effect")
    memory_efficient_linear: Flag = Field(default=True, description="linear layers that keep less")

    def clashes(self) -> Iterator[tuple[bool, str]]:
        yield (
            not self.compute_grad_norm,
            "compute_grad_norm: got false, expected true: the norm is logged and tells whether the step is sound",
        )


class DataTypesFile(Config):
    """Number formats."""

    grad_accum_dtype: Literal["fp32"] | None = Field(default=None, description="of the sum of gradients")


class DeepSpeedFile(Config):
    """A DeepSpeed file."""

    zero_optimization: ZeroFile = Field(description="a section with at least the stage of ZeRO: 1, 2 or 3")
    bf16: Bf16File = Field(default=Bf16File(), description="training in bfloat16")
    data_types: DataTypesFile = Field(default=DataTypesFile(), description="number formats")
    communication_data_type: FloatType | None = Field(default=None, description="of gradients that are sent")
    # Compared with the run config.
    train_batch_size: Either = Field(default=AUTO, description="global_rows in the run config")
    train_micro_batch_size_per_gpu: Either = Field(default=AUTO, description="micro_rows in the run config")
    gradient_accumulation_steps: Either = Field(default=AUTO, description="follows from the run config")
    gradient_clipping: Either = Field(default=AUTO, description="optimizer.clip_norm in the run config")
    optimizer: Either = Field(default=None, description="optimizer in the run config")
    zero_allow_untested_optimizer: Either = Field(default=AUTO, description="true: torch's AdamW is used")
    zero_force_ds_cpu_optimizer: Either = Field(default=AUTO, description="false: torch's AdamW is used")
    managed_gradient_accumulation: Flag = Field(default=True, description="find the last micro-batch of a step")
    # What is printed.
    steps_per_print: Count | None = Field(default=None, description="steps from one line of DeepSpeed's to the next")
    wall_clock_breakdown: Flag = Field(default=False, description="print times")
    memory_breakdown: Flag = Field(default=False, description="print memory")
    dump_state: Flag = Field(default=False, description="print DeepSpeed's state")

    def clashes(self) -> Iterator[tuple[bool, str]]:
        yield (
            not self.managed_gradient_accumulation,
            "managed_gradient_accumulation: got false, expected true: the engine must find the accumulation boundary",
        )


def read_deepspeed(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """The settings in a DeepSpeed file as DeepSpeed takes them, and what is wrong with them, a line each.

    "auto" in zero_optimization is left to DeepSpeed's default, and sections that are switched off are left out. Raises
    UserError where the file cannot be read or is no mapping.
    """
    values = _parsed(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a mapping", expected="DeepSpeed settings by name")
    refused = [name for name in UNSUPPORTED if name in values and not _is_off(values[name])]
    problems = [f"{name} is set, but {UNSUPPORTED[name]}" for name in refused]
    values = {name: value for name, value in values.items() if name not in UNSUPPORTED}
    zero = values.get("zero_optimization")
    if isinstance(zero, dict):
        values["zero_optimization"] = {name: value for name, value in zero.items() if value != AUTO}
    try:
        from_dict(DeepSpeedFile, values)
    except ConfigError as error:
        problems += error.problems
    return values, problems


def _is_off(section: Any) -> bool:
    return section is False or (isinstance(section, dict) and section.get("enabled") is False)


def _parsed(path: str | Path) -> Any:
    """The value of a JSON file in which no key stands twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(keys) != len(set(keys)):
            raise ValueError(
                f"the key {next(key for i, key in enumerate(keys) if key in keys[:i])!r:.100} stands twice"
            )
        return dict(pairs)

    try:
        return json.loads(read_bounded(path, MAX_BYTES).decode(), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}", expected="a DeepSpeed file in JSON") from error
