"""Choosing a class from logits: greedy, or at random after temperature, top-k and nucleus cuts.

Pure: the same logits, settings and generator state give the same choice. top-p: Holtzman et al. 2020
(arXiv 1904.09751). Shapes: V classes, any leading axes.

Example:
    pick(logits, Sampling(temperature=0.8, top_p=0.9), torch.Generator().manual_seed(0))
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a class is chosen. Temperature 0 takes the most probable one and needs no generator."""

    temperature: float = 0.0  # 0 is greedy, 1 the model's own distribution
    top_k: int = 0  # keep the k most probable, 0 all
    top_p: float = 1.0  # keep the fewest classes that hold this share of the probability
    repetition_penalty: float = 1.0  # of what was chosen lately: positive logits divided, others multiplied by it
    repetition_window: int = 50  # how far back that looks: frames of the same stream, or text tokens

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature: got {self.temperature}, expected a number from 0")
        if self.top_k < 0:
            raise ValueError(f"top_k: got {self.top_k}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, expected above 0 up to 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"repetition_penalty: got {self.repetition_penalty}, expected a number above 0")
        if self.repetition_window < 1:
            raise ValueError(f"repetition_window: got {self.repetition_window}, expected 1 or more")


def pick(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> torch.Tensor:
    """int64 [...]: one class for each of logits, float [..., V], in which -inf marks what may not be chosen.

    Raises ValueError for settings with a repetition penalty, which needs to know what was chosen before.
    """
    if sampling.repetition_penalty != 1:
        raise ValueError("pick knows nothing of earlier choices; the repetition penalty is the engine's")
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = truncate(logits.float() / sampling.temperature, sampling.top_k, sampling.top_p).softmax(dim=-1)
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).reshape(logits.shape[:-1])


def truncate(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """`logits` [..., V] with -inf at every class outside the top k and outside the nucleus of probability `top_p`."""
    if top_k and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= top_p)
        logits = logits.masked_fill(outside, -math.inf)
    return logits
