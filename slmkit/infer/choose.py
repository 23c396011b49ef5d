"""Choosing for many answers at once, each with its own settings, history and random numbers.

A choice depends on its row alone: its logits, settings, what it chose lately, and a number drawn from its request's
seed and the count of its draws. No generator is kept, so nothing depends on who else draws. The numbers: splitmix64
(Steele, Lea, Flood 2014). Repetition penalty: Keskar et al. 2019 (arXiv 1909.05858), for choices within a window.

Shapes: M rows, C classes.

Invariant: -inf is never chosen; a row gives the same class in any company.

Example:
    rows = [Row(sampling, seed=7, draw=0, lately=())]
    choose(logits, rows)
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from slmkit.infer.sampling import Sampling

GOLDEN = 0x9E3779B97F4A7C15
MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
FLOAT_BITS = 53  # of a float64's fraction


class Row(NamedTuple):
    """What a choice depends on besides its logits."""

    sampling: Sampling
    seed: int  # 0 to 2^64 - 1
    draw: int  # number of this choice among all of its request
    lately: Sequence[int]  # classes chosen within the window of the repetition penalty


def choose(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """int64 [M]: a class for each row of logits, float [M, C], in which -inf marks what may not be chosen."""
    logits = penalized(logits.float(), rows)
    chosen = logits.argmax(dim=-1)
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if drawn:
        places = torch.tensor(drawn, device=logits.device)
        chosen[places] = _draw(logits[places], [rows[i] for i in drawn])
    return chosen


def penalized(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """`logits` float32 [M, C] with each row's recent classes made less probable (more, by a penalty below 1)."""
    wanted = [i for i, row in enumerate(rows) if row.sampling.repetition_penalty != 1 and row.lately]
    if not wanted:
        return logits
    logits = logits.clone()
    for i in wanted:
        classes = torch.tensor(sorted(set(rows[i].lately)), device=logits.device)
        values, penalty = logits[i, classes], rows[i].sampling.repetition_penalty
        logits[i, classes] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def _draw(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """int64 [M]: a class for each row, at random from what temperature, top-k and top-p leave."""

    def column(values: Sequence[float] | npt.NDArray[np.float64], dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype, device=logits.device)[:, None]

    settings = [row.sampling for row in rows]
    num_classes = logits.shape[-1]
    scaled = logits / column([s.temperature for s in settings], torch.float32)
    ordered, places = scaled.sort(dim=-1, descending=True, stable=True)
    top_k = column([s.top_k or num_classes for s in settings], torch.int64)
    ordered = ordered.masked_fill(torch.arange(num_classes, device=logits.device) >= top_k, -math.inf)
    probabilities = ordered.softmax(dim=-1).double()
    before = probabilities.cumsum(dim=-1) - probabilities
    top_p = column([s.top_p if s.top_p < 1 else math.inf for s in settings], torch.float64)
    total = torch.where(before < top_p, probabilities, 0).cumsum(dim=-1)
    numbers = column(uniform([row.seed for row in rows], [row.draw for row in rows]), torch.float64)
    # The first class whose running total passes the number; one of probability 0 adds nothing and is never that.
    rank = (total <= numbers * total[:, -1:]).sum(dim=-1, keepdim=True)
    return places.gather(-1, rank)[:, 0]


def uniform(seeds: Sequence[int], draws: Sequence[int]) -> npt.NDArray[np.float64]:
    """Numbers float64 [M] in [0, 1): number `draw` of the stream of `seed`, for each pair."""
    with np.errstate(over="ignore"):
        key = _mix(np.array(seeds, dtype=np.uint64) + np.uint64(GOLDEN))
        bits = _mix(key + (np.array(draws, dtype=np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))
    return (bits >> np.uint64(64 - FLOAT_BITS)).astype(np.float64) * 2.0**-FLOAT_BITS


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    for shift, factor in MIXES:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits
