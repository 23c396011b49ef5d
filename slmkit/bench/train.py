"""Times training steps against the padded formulation, in codec frames per second of forward and backward pass.

Ours: utterances packed without padding, logits only where there are targets, sliced cross-entropy. Baseline: the usual
way (tests/twins/padded.py, on transformers' own model): a padded batch with an attention mask, and logits over the
whole vocabulary at every position, padding and prompt included (for MTP those of the heads as well). The baseline takes
the logits slice by slice too, in its favour: whole, they would not fit into memory.

Both have the same weights and see the same batches, in turns. The lengths of a run are evenly spaced quantiles of the
distribution in synthetic.py, in random order. Of ours it also gives positions and tokens per second (a position of MTP
holds several tokens), and MFU by model/flops.py where the peak of the device is known. `slmkit bench steps` times whole
steps, at the size of a real run.

Invariant: where both compute the same loss (all but the stream softmax) it is compared, and printed as a difference.

Example:
    slmkit bench train --batches 2
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from slmkit.bench.batches import make_batch, num_tokens
from slmkit.bench.race import race, twin
from slmkit.bench.synthetic import (
    LONGEST_SEC,
    MEDIAN_SEC,
    SHORTEST_SEC,
    SIGMA,
    ModelShape,
    model_config,
)
from slmkit.data.batch import Batch
from slmkit.model.flops import BatchSizes, Flops, known_peak
from slmkit.model.pretrained import seeded
from slmkit.model.slm import SpeechLM
from slmkit.texts import above_zero, natural, positive

M = TypeVar("M", bound=nn.Module)
SUMMARY = "training speed, packed against padded with full logits"
LR = 1e-4


FULL = ModelShape(hidden_size=256, intermediate_size=1024, num_layers=6, num_heads=4, num_shared=2)
TOY = ModelShape(
    base_tokens=2000, codebook=64, hidden_size=64, intermediate_size=256, num_layers=2, num_heads=2, num_shared=1
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is trained on."""

    shape: ModelShape
    utterances: int  # a batch
    time_scale: float  # shortens every utterance


FULL_LOAD = Load(shape=FULL, utterances=5, time_scale=1.0)
TOY_LOAD = Load(shape=TOY, utterances=4, time_scale=0.2)


@dataclass(frozen=True)
class Case:
    """A kind of model, and how many times the baseline's speed it should reach at the full shape."""

    name: str
    group: int
    softmax: Literal["full", "stream"]
    required: float


CASES = (Case("NTP", 0, "full", 2.0), Case("NTP, stream softmax", 0, "stream", 6.0), Case("MTP-3", 3, "full", 4.0))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=positive, default=2, help="of 5 utterances, timed (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a toy shape that takes seconds; its ratios mean little")
    parser.add_argument("--optimizer", action="store_true", help="add an AdamW step on both sides")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default: %(default)s")
    parser.add_argument("--peak-tflops", type=above_zero, help="of the device, for MFU; not needed for known GPUs")
    parser.add_argument("--seed", type=natural, default=0, help="of lengths, codes and weights (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    load = TOY_LOAD if args.quick else FULL_LOAD
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    cases = bench_training(
        load, batches=args.batches, seed=args.seed, optimizer=args.optimizer, device=device, dtype=dtype
    )
    peak = args.peak_tflops or known_peak(device, in_bf16=dtype == torch.bfloat16)
    for case in cases:
        case["mfu"] = case["tflops"] / peak if peak else None
    result = {
        "device": args.device,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "optimizer": args.optimizer,
        "shape": "quick" if args.quick else "full",
        "cases": cases,
    }
    print(json.dumps(result, indent=2) if args.json else describe(result))
    return 0


def bench_training(
    load: Load, *, batches: int, seed: int, optimizer: bool, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """One record per case: frames/s of both sides, their ratio, the largest difference between their losses.

    The stream softmax is set against the padded next-token baseline with the whole vocabulary.
    """
    lengths = load.time_scale * np.array(batch_seconds(batches, load.utterances, seed))
    records = []
    for group in sorted({case.group for case in CASES}):
        cases = [case for case in CASES if case.group == group]
        models: list[SpeechLM] = []
        for case in cases:
            with seeded(seed):
                models.append(moved(SpeechLM(model_config(load.shape, case.group, case.softmax)), device, dtype))
        padded = twin("padded").Padded(models[0])
        steps: list[Callable[[Batch], float]] = [
            trained(model, partial(packed_step, model), optimizer) for model in models
        ]
        steps.append(trained(padded, padded.step, optimizer))
        costs = [Flops(model) for model in models]
        losses: list[list[float]] = [[] for _ in steps]
        seconds, flops = [0.0] * len(steps), [0] * len(costs)
        frames = positions = tokens = 0
        for i, some in enumerate(lengths):
            batch = make_batch(models[0], some, seed)
            frames, positions = frames + batch.num_frames, positions + batch.num_tokens
            tokens += num_tokens(batch, group)
            sizes = BatchSizes.of(batch)
            flops = [done + cost.training(sizes) for done, cost in zip(flops, costs, strict=True)]
            batch = batch.to(device)
            laps = race([partial(step, batch) for step in steps], rounds=1, device=device, warm_up=i == 0)
            for side, lap in enumerate(laps):
                losses[side].append(lap.result)
                seconds[side] += lap.seconds
        for side, case in enumerate(cases):
            same = case.softmax == "full"
            differences = [abs(a - b) for a, b in zip(losses[side], losses[-1], strict=True)]
            records.append(
                {
                    "case": case.name,
                    "packed_frames_per_sec": frames / seconds[side],
                    "padded_frames_per_sec": frames / seconds[-1],
                    "ratio": seconds[-1] / seconds[side],
                    "required": case.required,
                    "positions_per_sec": positions / seconds[side],
                    "tokens_per_sec": tokens / seconds[side],
                    "tflops": flops[side] / seconds[side] / 1e12,
                    "loss": losses[side],
                    "loss_difference": max(differences) if same else None,
                }
            )
    return records


def trained(model: nn.Module, step: Callable[[Batch], torch.Tensor], with_optimizer: bool) -> Callable[[Batch], float]:
    """A whole training step: `step` makes forward and backward pass of a batch and gives the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR) if with_optimizer else None

    def train(batch: Batch) -> float:
        loss = step(batch)
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return train


def packed_step(model: SpeechLM, batch: Batch) -> torch.Tensor:
    """Forward and backward pass as in training."""
    loss = model(batch).loss
    loss.backward()
    return loss.detach()


def moved(model: M, device: torch.device, dtype: torch.dtype) -> M:
    """The model on `device`, as `dtype`, in training mode."""
    nn.Module.to(model, device=device, dtype=dtype)
    return model.train()


def batch_seconds(batches: int, utterances: int, seed: int) -> list[list[float]]:
    """Lengths of the utterances of each batch: evenly spaced quantiles of the distribution, shuffled."""
    count = batches * utterances
    normal = NormalDist(math.log(MEDIAN_SEC), SIGMA)
    quantiles = [math.exp(normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    lengths = np.clip(quantiles, SHORTEST_SEC, LONGEST_SEC)
    return np.random.default_rng(seed).permutation(lengths).reshape(batches, utterances).tolist()


def describe(result: dict[str, Any]) -> str:
    """The result as lines for a reader."""
    lines = [
        f"codec frames per second of forward and backward{' and AdamW' if result['optimizer'] else ''}: "
        f"{result['device']}, {result['dtype']}, {result['threads']} threads, {result['shape']} shape",
        f"{'':22}{'packed':>10}{'padded':>10}{'ratio':>8}{'required':>10}{'positions/s':>13}{'tokens/s':>11}"
        f"{'TFLOP/s':>9}{'MFU':>7}   loss difference",
    ]
    for case in result["cases"]:
        same = "another loss" if case["loss_difference"] is None else f"{case['loss_difference']:.1e}"
        mfu = "-" if case["mfu"] is None else f"{100 * case['mfu']:.1f} %"
        lines.append(
            f"{case['case']:22}{case['packed_frames_per_sec']:10.1f}{case['padded_frames_per_sec']:10.1f}"
            f"{case['ratio']:8.2f}{case['required']:10.1f}{case['positions_per_sec']:13.1f}"
            f"{case['tokens_per_sec']:11.1f}{case['tflops']:9.3f}{mfu:>7}   {same}"
        )
    return "\n".join(lines)
