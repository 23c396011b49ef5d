"""DeepSpeed's file and the run config: one number, one place."""

import json
from pathlib import Path
from typing import Any

import pytest

from slmkit.config.load import from_dict
from slmkit.config.train import TrainConfig
from slmkit.errors import UserError
from slmkit.train.settings import deepspeed_settings, precision
from slmkit.world import BatchSplit

ROOT = Path(__file__).resolve().parent.parent.parent
SPLIT = BatchSplit(global_rows=8, micro_rows=2, world_size=2)
ZERO = {"zero_optimization": {"stage": 2}}


def settings_of(tmp_path: Path, content: Any) -> dict[str, Any]:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    values = {"run_dir": "r", "base": "b", "deepspeed": str(path), "data": {"corpus": "c"}, "steps": 1}
    return deepspeed_settings(from_dict(TrainConfig, {**values, "global_rows": 8, "micro_rows": 2}), SPLIT)


CLASHES = [
    ({"train_batch_size": 16}, "train_batch_size is 16, but global_rows is 8"),
    ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4, but micro_rows is 2"),
    ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps is 3, but global_rows / .* is 2"),
    ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, but optimizer.clip_norm is 1.0"),
    ({"optimizer": {"params": {"lr": 1e-3}}}, "optimizer.params.lr is 0.001, but optimizer.lr is 0.0005"),
    ({"optimizer": {"params": {"betas": [0.9, 0.999]}}}, "but optimizer.betas is"),
    ({"optimizer": {"params": {"torch_adam": True}}}, "torch_adam is True, which the run config does not know"),
    ({"optimizer": {"type": "Lamb"}}, "optimizer.type is Lamb, expected AdamW"),
    ({"optimizer": 3}, "optimizer is 3, expected type and params"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler is set, but schedule"),
    ({"zero_optimization": {"stage": 4}}, "stage is 4, expected 1, 2 or 3"),
    ({"zero_optimization": {}}, "stage is 0, expected 1, 2 or 3"),
    ({"bf16": {"enabled": True, "check_grad_overflow": False}}, "check_grad_overflow is false"),
    ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "compute_grad_norm is false"),
    ({"fp16": {"enabled": True}}, "fp16 is set"),
    ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation is false"),
]


@pytest.mark.parametrize(("change", "message"), CLASHES, ids=[message[:40] for _, message in CLASHES])
def test_a_clash_names_both(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settings_of(tmp_path, {**ZERO, **change})
    assert str(tmp_path / "ds.json") in str(caught.value)


def test_all_clashes_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_batch_size is 1.*gradient_clipping is 7"):
        settings_of(tmp_path, {**ZERO, "train_batch_size": 1, "gradient_clipping": 7})


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


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not hold a mapping"):
        settings_of(tmp_path, [1])


@pytest.mark.parametrize("file", sorted((ROOT / "ds_configs").iterdir()), ids=lambda file: file.stem)
def test_our_files_agree_with_every_run_config(tmp_path: Path, file: Path) -> None:
    settings = settings_of(tmp_path, json.loads(file.read_text()))
    assert precision(settings) == file.stem.rpartition("_")[2]
    assert settings["gradient_accumulation_steps"] == 2
