"""DeepSpeed's file and the run config: one number, one place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from slmkit.config.deepspeed import Bf16File, OffloadFile, ZeroFile, read_deepspeed
from slmkit.config.load import from_dict
from slmkit.config.train import TrainConfig
from slmkit.errors import ConfigError, UserError
from slmkit.train.settings import check_files, deepspeed_settings, precision
from slmkit.world import BatchSplit, World

ROOT = Path(__file__).resolve().parent.parent.parent
SPLIT = BatchSplit(global_rows=8, micro_rows=2, world_size=2)
ZERO = {"zero_optimization": {"stage": 2}}


def settings_of(tmp_path: Path, content: Any, **options: Any) -> dict[str, Any]:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    values = {"run_dir": "r", "base": "b", "deepspeed": str(path), "data": {"corpus": "c"}, "steps": 1}
    values |= {"global_rows": 8, "micro_rows": 2, **options}
    return deepspeed_settings(from_dict(TrainConfig, values), SPLIT)


CLASHES = [
    ({"train_batch_size": 16}, "train_batch_size is 16, but global_rows is 8"),
    ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4, but micro_rows is 2"),
    ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps is 3, but global_rows / .* is 2"),
    ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, but optimizer.clip_norm is 1.0"),
    ({"optimizer": {"params": {"lr": 1e-3}}}, "optimizer.params.lr is 0.001, but optimizer.lr is 0.0005"),
    ({"optimizer": {"params": {"betas": [0.9, 0.999]}}}, "but optimizer.betas is"),
    ({"optimizer": {"params": {"torch_adam": True}}}, "torch_adam is True, which the run config does not know"),
    ({"optimizer": {"type": "Lamb"}}, "optimizer.type is 'Lamb', expected AdamW"),
    ({"optimizer": 3}, "optimizer is 3, expected type and params"),
    ({"optimizer": {"typ": "AdamW"}}, "optimizer.typ: unknown key"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler is set, but schedule"),
    ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: got 4, expected a whole number, 1 to 3"),
    ({"zero_optimization": {}}, "zero_optimization.stage: missing"),
    ({"bf16": {"enabled": True, "check_grad_overflow": False}}, "bf16.check_grad_overflow: got false"),
    ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "zero_optimization.compute_grad_norm: got false"),
    ({"fp16": {"enabled": True}}, "fp16 is set"),
    ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation: got false"),
    ({"train_batch_size": True}, "train_batch_size is True, but global_rows is 8"),
    (
        {"zero_force_ds_cpu_optimizer": True},
        "zero_force_ds_cpu_optimizer is True, but what torch's AdamW needs",
    ),
]


MISTAKES = [
    ({"bf16": None}, "bf16: got None, expected a group of options"),
    ({"bf16": True}, "bf16: got True, expected a group of options"),
    ({"bf16": {"enabled": "auto"}}, "bf16.enabled: got 'auto', expected true or false"),
    ({"bfloat16": {"enabled": True}}, "bfloat16: unknown key; did you mean bf16?"),
    ({"train_batchsize": 8}, "train_batchsize: unknown key; did you mean train_batch_size?"),
    ({"zero_optimization": None}, "zero_optimization: got None, expected a group of options"),
    ({"zero_optimization": True}, "zero_optimization: got True, expected a group of options"),
    ({"zero_optimization": {"stage": "2"}}, "zero_optimization.stage: got '2', expected a whole number"),
    ({"zero_optimization": {"stage": True}}, "zero_optimization.stage: got True, expected a whole number"),
    ({"zero_optimization": {"stage": 2, "overlap_com": 1}}, "did you mean zero_optimization.overlap_comm?"),
    ({"zero_optimization": {"stage": 2, "zero_quantized_gradients": True}}, "zero_quantized_gradients: unknown key"),
    (
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": "lots"}},
        "reduce_bucket_size: got 'lots', exp",
    ),
    (
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 0}},
        "reduce_bucket_size: got 0, expected a whole",
    ),
    (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
        "device: got 'nvme', expected",
    ),
    (
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
        "device: got 'cpu', expected one",
    ),
    ({"data_types": {"grad_accum_dtype": "fp8"}}, "data_types.grad_accum_dtype: got 'fp8', expected one of 'fp32'"),
    ({"communication_data_type": "int8"}, "communication_data_type: got 'int8', expected one of 'fp32', 'bf16'"),
    ({"elasticity": {"enabled": True}}, "elasticity is set, but global_rows"),
    ({"checkpoint": None}, "checkpoint is set, but slmkit writes"),
    ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op is set, but the loss is a sum"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_mistake_in_the_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings_of(tmp_path, {**ZERO, **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "cannot read .*ds.json as JSON"),
        ('{"zero_optimization": {"stage": 2, "stage": 3}}', "the key 'stage' stands twice"),
        ('{"a": "' + "x" * 200_000 + '"}', "is too large"),
        ('{"gradient_clipping": ' + "9" * 5000 + "}", "cannot read .*ds.json as JSON"),
    ],
    ids=["deep", "twice", "large", "digits"],
)
def test_a_file_that_is_no_good_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_deepspeed(tmp_path / "ds.json")


def test_what_other_programs_write_is_read(tmp_path: Path) -> None:
    zero = {"stage": 2, "reduce_bucket_size": 5e8, "allgather_bucket_size": "auto", "overlap_comm": None}
    files = {"fp16": {"enabled": False, "loss_scale": 0}, "flops_profiler": {"enabled": False}, "steps_per_print": 10}
    settings = settings_of(tmp_path, {"zero_optimization": zero, **files})
    assert "fp16" not in settings
    assert settings["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 5e8, "overlap_comm": None}


@pytest.mark.parametrize(("change", "message"), CLASHES, ids=[message[:40] for _, message in CLASHES])
def test_a_clash_names_both(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settings_of(tmp_path, {**ZERO, **change})
    assert str(tmp_path / "ds.json") in str(caught.value)


def test_all_clashes_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)amp is set.*bf16: got.*train_batch_size is 1.*clipping is 7"):
        settings_of(tmp_path, {**ZERO, "train_batch_size": 1, "gradient_clipping": 7, "bf16": 1, "amp": {}})


def test_equal_and_auto_values_are_no_clash(tmp_path: Path) -> None:
    agreeing = {
        **ZERO,
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.95], "weight_decay": 0.0}},
        "fp16": {"enabled": False},
    }
    settings = settings_of(tmp_path, agreeing)
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert "optimizer" not in settings


def test_a_run_directory_that_deepspeed_would_take_for_a_pattern_is_refused() -> None:
    values = {"run_dir": "runs/[a]", "base": "b", "deepspeed": "zero2_fp32", "data": {"corpus": "c"}, "steps": 1}
    with pytest.raises(ConfigError, match=r"could not be continued\n +got: +runs/\[a\]"):
        check_files(from_dict(TrainConfig, values), World())


def test_options_for_speed_are_held_against_the_file(tmp_path: Path) -> None:
    """ZeRO-3 and compiled layers exclude each other, and so do bf16 and tf32."""
    overlapping = {"zero_optimization": {"stage": 2, "overlap_comm": True}}
    assert settings_of(tmp_path, overlapping)["zero_optimization"]["overlap_comm"] is True
    assert settings_of(tmp_path, overlapping, compile=True, tf32=True)["zero_optimization"]["overlap_comm"] is False
    narrow = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    with pytest.raises(ConfigError, match=r"(?s)stage is 3, but compile is true.*tf32 is true, which is for training"):
        settings_of(tmp_path, narrow, compile=True, tf32=True)
    with pytest.raises(ConfigError, match=r"(?s)activation_checkpointing in the run config.*compile in the run config"):
        settings_of(tmp_path, {**ZERO, "activation_checkpointing": {"profile": True}, "compile": {"deepcompile": True}})


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not hold a mapping"):
        settings_of(tmp_path, [1])


@pytest.mark.parametrize("file", sorted((ROOT / "ds_configs").iterdir()), ids=lambda file: file.stem)
def test_our_files_agree_with_every_run_config(tmp_path: Path, file: Path) -> None:
    settings = settings_of(tmp_path, json.loads(file.read_text()))
    assert precision(settings) == file.stem.rpartition("_")[2]
    assert settings["gradient_accumulation_steps"] == 2


@pytest.mark.full
def test_what_is_accepted_is_what_deepspeed_knows() -> None:
    """A name that a new DeepSpeed has dropped would be refused by it with a traceback."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    for ours, theirs in (
        (ZeroFile, DeepSpeedZeroConfig),
        (Bf16File, DeepSpeedBF16Config),
        (OffloadFile, DeepSpeedZeroOffloadOptimizerConfig),
    ):
        known = {field.alias or name for name, field in theirs.model_fields.items()}
        assert {*ours.model_fields} <= known
