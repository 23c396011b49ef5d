"""Runs with the options for speed against plain runs, by the real DeepSpeed engine: curves, resuming, exports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from train.place import Place
from train.ranks import ROOT

from slmkit.config.load import from_dict
from slmkit.config.train import TrainConfig
from slmkit.errors import UserError
from slmkit.model.pretrained import load
from slmkit.train.start import choose_execution

STEPS = 20
EVALUATED = 10  # steps between evaluations
RECOMPUTED = {"activation_checkpointing": True}
ZERO3 = str(ROOT / "ds_configs" / "zero3_fp32.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("speed"))


def config(place: Place, name: str, world_size: int, model: str = "mtp", **change: Any) -> dict[str, Any]:
    constant = {"kind": "constant", "warmup_steps": 2}  # so that a run of half the steps has the same first half
    # An eps above the rounding of gradients: AdamW makes a whole step even of a gradient that is nothing but rounding.
    adamw = {"lr": 2e-3, "clip_norm": 0.3, "weight_decay": 0.1, "eps": 1e-4}
    options = {"steps": STEPS, "schedule": constant, "optimizer": adamw, "eval_every_steps": EVALUATED}
    options["data"] = {"eval_share": 0.2}
    return place.config(f"{name}-{world_size}", model, **{**options, **change})


def check_curve(place: Place, name: str, plain: str, tolerance: float = 1e-5) -> None:
    """Losses of every step and of the evaluations agree."""
    ours, theirs = place.metrics(name), place.metrics(plain)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert theirs[-1]["step"] == STEPS
    for got, want in zip(ours, theirs, strict=True):
        losses = [key for key in want if "loss" in key]
        assert losses
        for key in losses:
            assert got[key] == pytest.approx(want[key], abs=tolerance), (name, want["step"], key)


@pytest.mark.full
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_option_gives_the_same_curve(place: Place, world_size: int, tmp_path: Path) -> None:
    """Compiled layers, fused kernels, activations that are computed again (with ZeRO-3: weights come together a second
    time). A compiled run goes on from a checkpoint bit for bit, and its export is that of any other run.

    The graphs are those that inductor would get, run without it: `model/test_compiled.py` has inductor.
    """
    compiled = {"compile": True, **RECOMPUTED}
    runs: dict[str, dict[str, Any]] = {"plain": {}, "compiled": compiled, "fused": {"fused_kernels": True}}
    if world_size == 1:
        runs |= {"halves": {**compiled, "steps": STEPS // 2}, "halves again": compiled}
    else:
        runs |= {"compiled": {"compile": True}, "recomputed": {"deepspeed": ZERO3, **RECOMPUTED}}
    configs = {name: config(place, name.split()[0], world_size, **options) for name, options in runs.items()}
    tasks: list[dict[str, Any]] = [
        {"kind": "train_compiled", "config": each, "backend": "aot_eager"}
        if each.get("compile")
        else {"kind": "train_fused" if each.get("fused_kernels") else "train", "config": each}
        for each in configs.values()
    ]
    exports = {name: tmp_path / name for name in (("compiled", "plain") if world_size == 1 else ())}
    tasks += [{"kind": "consolidate", "config": configs[name], "out": str(out)} for name, out in exports.items()]
    results = dict(zip(configs, place.run(world_size, tasks), strict=False))
    for name in ("compiled", "fused"):
        check_curve(place, f"{name}-{world_size}", f"plain-{world_size}")
    assert min(results["fused"][kind] for kind in ("norm", "swiglu", "rotation")) >= STEPS
    assert results["compiled"]["graphs"] == 2, "one for training and one for evaluation"
    if world_size > 1:
        check_curve(place, f"recomputed-{world_size}", f"plain-{world_size}")
        return
    assert place.metrics(f"halves-{world_size}") == place.metrics(f"compiled-{world_size}")
    ours, theirs = (load(out).state_dict() for out in exports.values())
    assert list(ours) == list(theirs)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-3, rtol=1e-3, msg=name)


def test_options_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is missing for the fused kernels, and the base has dropout in its attention."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values = {"run_dir": "r", "base": "b", "deepspeed": "zero2_fp32", "data": {"corpus": "c"}, "steps": 1}
    model = tiny_model(0)
    with pytest.raises(UserError, match="fused_kernels: the kernels of liger-kernel run on a GPU"):
        choose_execution(model, from_dict(TrainConfig, {**values, "fused_kernels": True}), {})
    model.backbone.config.attention_dropout = 0.5
    with pytest.raises(UserError, match="compile: compiled layers have no dropout in their attention"):
        choose_execution(model, from_dict(TrainConfig, {**values, "compile": True}), {})
