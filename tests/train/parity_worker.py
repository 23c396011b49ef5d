"""One rank: the parity check with DeepSpeed as it is, then with each way of breaking it.

    python parity_worker.py RESULTS.json

The first rank writes {fault: fields of the CheckResult}.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import deepspeed
import torch

from slmkit.train import parity
from slmkit.train.doctor import check_parity
from slmkit.train.engine import process_group
from slmkit.world import World

WORLD = World.from_env()
FAULTS: dict[str, Callable[[int], float]] = {  # number of the micro-batch in its step -> factor of its gradient
    "none": lambda micro: 1.0,
    "scale": lambda micro: 0.5,
    "first micro-batch dropped": lambda micro: float(micro),
    "last micro-batch counts twice": lambda micro: 1.0 + micro,
}
whole_backward = deepspeed.DeepSpeedEngine.backward
whole_model = parity.tiny_model


def broken_backward(factor: Callable[[int], float]) -> Any:
    calls = iter(range(1000))

    def backward(engine: Any, loss: torch.Tensor, **options: Any) -> Any:
        return whole_backward(engine, loss * factor(next(calls) % parity.ACCUMULATION), **options)

    return backward


def run_tied() -> Any:
    """DeepSpeed's copy of the model loses half of the gradient of its tied embedding."""

    def create(model: Any, *arguments: Any) -> Any:
        model.lm_model.lm_head.weight.register_hook(lambda gradient: gradient / 2)
        return whole_create(model, *arguments)

    whole_create = parity.TrainEngine.create
    with patch.object(parity.TrainEngine, "create", staticmethod(create)):
        return check_parity(WORLD, device)


with process_group(WORLD) as device:
    results = {}
    for name, factor in FAULTS.items():
        with patch.object(deepspeed.DeepSpeedEngine, "backward", broken_backward(factor)):
            results[name] = check_parity(WORLD, device)
    results["tied"] = run_tied()
if WORLD.is_first:
    values = {name: dataclasses.asdict(result) for name, result in results.items()}
    Path(sys.argv[1]).write_text(json.dumps(values))
