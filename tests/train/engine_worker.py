"""One rank: steps with every DeepSpeed file of the toolkit, some of them with a gradient that is not finite.

    python engine_worker.py RESULTS.json DIRECTORY FILE...

The first rank writes {"parity": ..., file: what `report` gives}. Checkpoints go to DIRECTORY.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from train.ranks import ROOT

from slmkit.checkpoints import checkpoint
from slmkit.checkpoints.universal import to_universal
from slmkit.config.load import from_dict
from slmkit.config.run_dir import UNIVERSAL, Checkpoint
from slmkit.config.train import TrainConfig
from slmkit.data.batch import Batch
from slmkit.export import merged_weights
from slmkit.group import barrier, in_first, sum_over_ranks
from slmkit.train import parity
from slmkit.train.engine import TrainEngine, process_group
from slmkit.train.settings import deepspeed_settings
from slmkit.world import BatchSplit, World

WORLD = World.from_env()
SPLIT = BatchSplit(global_rows=parity.ACCUMULATION * WORLD.size, micro_rows=1, world_size=WORLD.size)
NUM_STEPS = 6
BAD = {
    1: ("gradient", 1, 0),
    4: ("loss", 0, 1),
}  # step -> what is not finite, on which rank, in which micro-batch
SAVED = 4  # a checkpoint is written after this step
LR = 1e-2
State = list[torch.Tensor]


class Trainer:
    """The tiny model of `parity` in training as one of the files says."""

    def __init__(self, file: Path, *, universal: bool = False) -> None:
        values = {"run_dir": "r", "base": "b", "deepspeed": str(file), "data": {"corpus": "c"}, "steps": NUM_STEPS}
        values |= {"global_rows": SPLIT.global_rows, "micro_rows": SPLIT.micro_rows}
        config = from_dict(TrainConfig, {**values, "optimizer": {"lr": LR, "clip_norm": 0.5, "weight_decay": 0.1}})
        settings = deepspeed_settings(config, SPLIT)
        if settings["zero_optimization"]["stage"] == 3:  # or so small a model is not spread
            settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        self.engine = TrainEngine.create(
            parity.tiny_model().to(device), settings, config.optimizer, WORLD, universal=universal
        )

    def batch(self, step: int, micro: int) -> Batch:
        """This rank's micro-batch; every step has other utterances."""
        config = self.engine.module.config
        examples = parity.utterances(config, SPLIT.global_rows * step)[-SPLIT.global_rows :]
        rows = SPLIT.rows(WORLD.rank, micro)
        counts = parity.target_counts(config, examples)
        return parity.micro_batch(config, examples[rows.start : rows.stop], counts).to(device)

    def step(self, step: int) -> dict[str, Any]:
        """A step with what BAD says of it, and what became of it."""
        before = self.state()
        kind, *bad_place = BAD.get(step, ("nothing",))
        for micro in range(SPLIT.accumulation):
            batch, handles = self.batch(step, micro), []
            if bad_place == [WORLD.rank, micro] and kind == "loss":
                batch = dataclasses.replace(batch, speaker=batch.speaker * float("nan"))
            if bad_place == [WORLD.rank, micro] and kind == "gradient":
                handles.append(self.engine.module.spk_emb_proj[0].register_forward_hook(poison))
            self.engine.micro_step(batch, lr=LR / step)
            for handle in handles:
                handle.remove()
        return {
            "skipped": count(self.engine.skipped),
            "unchanged": count(same(before, self.state())),
            "norm": self.engine.grad_norm,
            "count": self.engine._engine.global_steps,
        }

    def steps(self, steps: Iterable[int]) -> dict[int, dict[str, Any]]:
        return {step: self.step(step) for step in steps}

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.clone() for name, weight in self.engine.weights()}

    def state(self) -> State:
        """Weights, then the optimizer's own share of them, of the moments and of the counts of updates."""
        found = list(self.weights().values())
        for parameter, moments in self.engine._engine.optimizer.state.items():
            found += [parameter.detach().clone(), *(torch.as_tensor(moments[name]).clone() for name in sorted(moments))]
        return found


def poison(module: Any, inputs: Any, output: torch.Tensor) -> None:
    """The loss stays what it was, and so do the gradients of all but one layer."""
    output.register_hook(lambda gradient: gradient * float("inf"))


def same(some: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> bool:
    """Whether all agree bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def count(flag: bool) -> int:
    """In how many processes it holds."""
    return int(sum_over_ranks(torch.tensor(float(flag), device=device)))


def report(file: Path, directory: Path) -> dict[str, Any]:
    trainer, good, again, converted = *(Trainer(file) for _ in range(3)), Trainer(file, universal=True)
    steps = trainer.steps(range(1, SAVED + 1))
    saved = directory / f"step-{SAVED}"
    for name, value in trainer.engine.parts(saved, lambda value: value):
        checkpoint.write(saved / name, value)
    barrier()
    at_save, weights = trainer.state(), trainer.weights()
    again.engine.load(directory, f"step-{SAVED}")
    loaded = count(same(at_save, again.state()))
    in_first(lambda: to_universal(directory / f"step-{SAVED}", directory / UNIVERSAL / f"step-{SAVED}"))
    converted.engine.load(directory / UNIVERSAL, f"step-{SAVED}")
    merged = merged_weights(Checkpoint(directory / f"step-{SAVED}", SAVED, {}))
    steps |= trainer.steps(range(SAVED + 1, NUM_STEPS + 1))
    good_steps = good.steps(step for step in range(1, NUM_STEPS + 1) if step not in BAD)
    return {
        "steps": steps,
        "good steps": good_steps,
        "as if": count(same(trainer.weights().values(), good.weights().values())),
        "loaded": loaded,
        "loaded steps": again.steps(range(SAVED + 1, NUM_STEPS + 1)),
        "as loaded": count(same(trainer.state(), again.state())),
        "converted steps": converted.steps(range(SAVED + 1, NUM_STEPS + 1)),
        "as converted": count(same(trainer.weights().values(), converted.weights().values())),
        "merged": count(same((merged[name].to(weight.dtype) for name, weight in weights.items()), weights.values())),
        "merged in float32": all(weight.dtype == torch.float32 for weight in merged.values()),
        "alone": alone(trainer),
    }


def alone(trainer: Trainer) -> dict[str, bool] | None:
    """The first process uses the model while the others do nothing."""
    batch = trainer.batch(1, 0)
    weights, random = trainer.weights(), torch.get_rng_state()
    with torch.no_grad():
        together = trainer.engine.module(batch).loss
    with trainer.engine.plain_module() as model, torch.no_grad():
        if model is None:
            return None
        return {
            "loss": torch.equal(model(batch).loss, together),
            "weights": same(dict(model.named_parameters()).values(), weights.values()),
            "names": list(dict(model.named_parameters())) == list(weights),
            "tied": model.lm_model.lm_head.weight is model.lm_model.model.embed_tokens.weight,
            "training": model.training,
            "random": torch.equal(torch.get_rng_state(), random),
        }


def parity_of_stages() -> dict[int, float]:
    """The worst relative difference to plain steps, of the norm and of any parameter's update."""
    compared = {stage: parity.compare_steps(WORLD, device, stage) for stage in (1, 2, 3)}
    return {stage: max(max(s.norm_difference, s.worst()[1]) for s in steps) for stage, steps in compared.items()}


with process_group(WORLD) as device:
    results: dict[str, Any] = {}
    for name in sorted(sys.argv[3:]):  # ZeRO-3 last: it leaves its own linear function in torch
        results[name] = report(ROOT / "ds_configs" / f"{name}.json", Path(sys.argv[2]) / name)
    results["parity"] = parity_of_stages()
if WORLD.is_first:
    Path(sys.argv[1]).write_text(json.dumps(results))
