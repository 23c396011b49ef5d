"""Choosing classes from logits, for many answers at once, each with its own settings, history and random numbers.

A choice depends on its row alone: its logits, settings, what it chose lately, and a number drawn from its request's
seed and the count of its draws. No generator is kept, so nothing depends on who else draws. The numbers: splitmix64
(Steele, Lea, Flood 2014). top-p: Holtzman et al. 2020 (arXiv 1904.09751). Repetition penalty: Keskar et al. 2019
(arXiv 1909.05858), for choices within a window.

Settings, histories and numbers reach the device as one tensor (`packed`), so that a step costs one transfer.

Shapes: M rows, C classes, W recent classes.

Invariant: -inf is never chosen; a row gives the same class in any company.

Example:
    choices = [Choice(Sampling(temperature=0.8, top_p=0.9), seed=7, draw=0, lately=())]
    choose(logits, choices, torch.from_numpy(packed(choices)))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

# Logits are divided or multiplied by these settings in float32: one that becomes 0, infinite or not a number there
# would choose what may not be chosen, and end the answers beside it.
LEAST_FACTOR, MOST_FACTOR = 1e-6, 1e6
LARGEST = torch.finfo(torch.float32).max  # for logits of wild weights, which these settings could make infinite
GOLDEN = 0x9E3779B97F4A7C15
MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
FLOAT_BITS = 53  # of a float64's fraction
TEMPERATURE, TOP_K, TOP_P, PENALTY, NUMBER, HISTORY = range(6)  # columns of `packed`; the history goes on from its own
MOST_CLASSES = 2.0**31  # as a top-k: more than there ever are
GREEDY_NUMBER = -1.0  # in place of a random number, where the most probable class is taken


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a class is chosen. Temperature 0 takes the most probable one. Raises ValueError naming a bad setting."""

    temperature: float = 0.0  # 0 is greedy, 1 the model's own distribution
    top_k: int = 0  # keep the k most probable, 0 all
    top_p: float = 1.0  # keep the fewest classes that hold this share of the probability
    repetition_penalty: float = 1.0  # of what was chosen lately: positive logits divided, others multiplied by it
    repetition_window: int = 50  # how far back that looks: frames of the same stream, or text tokens

    def __post_init__(self) -> None:
        limits = f"{LEAST_FACTOR:g} to {MOST_FACTOR:g}"
        if self.temperature != 0 and not LEAST_FACTOR <= self.temperature <= MOST_FACTOR:
            raise ValueError(f"temperature: got {self.temperature}, expected 0, or {limits}")
        if self.top_k < 0:
            raise ValueError(f"top_k: got {self.top_k}, expected 0 or more")
        if not LEAST_FACTOR <= self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, expected {LEAST_FACTOR:g} to 1")
        if not LEAST_FACTOR <= self.repetition_penalty <= MOST_FACTOR:
            raise ValueError(f"repetition_penalty: got {self.repetition_penalty}, expected {limits}")
        if self.repetition_window < 1:
            raise ValueError(f"repetition_window: got {self.repetition_window}, expected 1 or more")


class Choice(NamedTuple):
    """What a choice depends on besides its logits."""

    sampling: Sampling
    seed: int  # 0 to 2^64 - 1
    draw: int  # number of this choice among all of its request
    lately: Sequence[int]  # classes chosen within the window of the repetition penalty

    @property
    def is_drawn(self) -> bool:
        """Whether it takes a class at random, and not the most probable one."""
        return self.sampling.temperature > 0

    @property
    def is_penalized(self) -> bool:
        """Whether a penalty changes its logits."""
        return self.sampling.repetition_penalty != 1 and len(self.lately) > 0


def packed(choices: Sequence[Choice]) -> npt.NDArray[np.float64]:
    """float64 [M, 5 + W]: what `choose` takes from its choices, so that it reaches a device as one tensor.

    The columns: temperature, top-k, top-p, penalty, random number (-1 where the most probable class is taken), and the
    W recent classes, each as often as it takes to fill them. All are exact in float64.
    """
    window = max((len(choice.lately) for choice in choices if choice.is_penalized), default=0)
    numbers = np.zeros((len(choices), HISTORY + window))
    numbers[:, :HISTORY] = 1, MOST_CLASSES, math.inf, 1, GREEDY_NUMBER
    drawn = [i for i, choice in enumerate(choices) if choice.is_drawn]
    if drawn:
        some = [choices[i] for i in drawn]
        settings = [choice.sampling for choice in some]
        numbers[drawn, TEMPERATURE] = [s.temperature for s in settings]
        numbers[drawn, TOP_K] = [min(s.top_k or MOST_CLASSES, MOST_CLASSES) for s in settings]
        numbers[drawn, TOP_P] = [s.top_p if s.top_p < 1 else math.inf for s in settings]
        numbers[drawn, NUMBER] = random_numbers([c.seed for c in some], [c.draw for c in some])
    for row, choice in zip(numbers, choices, strict=True):
        if choice.is_penalized:  # else the penalty is 1, of class 0, which changes nothing
            row[PENALTY] = choice.sampling.repetition_penalty
            row[HISTORY:] = np.resize(choice.lately, window)
    return numbers


def choose(logits: torch.Tensor, choices: Sequence[Choice], numbers: torch.Tensor) -> torch.Tensor:
    """int64 [M]: a class for each row of logits, float [M, C], in which -inf marks what may not be chosen.

    numbers: `packed(choices)` on the device of the logits, perhaps with a wider history.
    """
    logits = penalized(logits.float(), choices, numbers)
    chosen = logits.argmax(dim=-1)
    if any(choice.is_drawn for choice in choices):
        chosen = torch.where(numbers[:, NUMBER] < 0, chosen, _sample(logits, numbers))
    return chosen


def penalized(logits: torch.Tensor, choices: Sequence[Choice], numbers: torch.Tensor) -> torch.Tensor:
    """`logits` float32 [M, C] with each row's recent classes made less probable (more, by a penalty below 1).

    numbers: as `choose` takes them.
    """
    if not any(choice.is_penalized for choice in choices):
        return logits
    classes, penalty = numbers[:, HISTORY:].long(), numbers[:, PENALTY, None].float()
    values = logits.gather(1, classes)
    values = torch.where(values > 0, values / penalty, values * penalty).clamp(max=LARGEST)
    return logits.scatter(1, classes, values)  # a class that is there twice gets the same value twice


def _sample(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """int64 [M]: a class for each row, at random from what temperature, top-k and top-p leave; any class in rows that
    take the most probable one."""
    temperature, top_k, top_p, _, number = (column[:, None] for column in numbers[:, :HISTORY].unbind(dim=1))
    scaled = (logits / temperature.float()).clamp(max=LARGEST)
    ordered, places = scaled.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= top_k, -math.inf)
    probabilities = ordered.softmax(dim=-1).double()
    before = probabilities.cumsum(dim=-1) - probabilities
    total = torch.where(before < top_p, probabilities, 0).cumsum(dim=-1)
    # The first class whose running total passes the number; one of probability 0 adds nothing and is never that.
    rank = (total <= number * total[:, -1:]).sum(dim=-1, keepdim=True)
    return places.gather(-1, rank)[:, 0]


def random_numbers(seeds: Sequence[int], draws: Sequence[int]) -> npt.NDArray[np.float64]:
    """Numbers float64 [M], uniform in [0, 1): number `draw` of the stream of `seed`, for each pair."""
    with np.errstate(over="ignore"):
        key = _splitmix(np.array(seeds, dtype=np.uint64) + np.uint64(GOLDEN))
        bits = _splitmix(key + (np.array(draws, dtype=np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))
    return (bits >> np.uint64(64 - FLOAT_BITS)).astype(np.float64) * 2.0**-FLOAT_BITS


def seed_of_attempt(seed: int, attempt: int) -> int:
    """The seed, 0 to 2^64 - 1, of attempt 0, 1, ... at a request with `seed`; that of attempt 0 is the request's."""
    if not attempt:
        return seed
    with np.errstate(over="ignore"):
        return int(_splitmix(_splitmix(np.array([seed], dtype=np.uint64)) + np.uint64(attempt))[0])


def _splitmix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    for shift, factor in MIXES:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits
