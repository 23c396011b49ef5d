"""Attention over packed utterances as one softmax over all positions, with everything else masked."""

import torch

from slmkit.model.attention import Packing

HEADS, SHARED, WIDTH = 4, 2, 8
SCALE = 0.3


def qkv(positions: int, batch: int = 1, seed: int = 0) -> list[torch.Tensor]:
    """Random query [B, H, N, E], key and value [B, J, N, E], of which gradients can be taken."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, positions, WIDTH) for heads in (HEADS, SHARED, SHARED)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def packing_of(lengths: list[int]) -> Packing:
    borders = torch.tensor([0, *lengths]).cumsum(0)
    return Packing(borders.int(), int(borders[-1]))


def naive(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Softmax over all positions with everything but the utterance's own past masked; [1, N, H, E]."""
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = (number[:, None] == number[None]).tril()
    key, value = (x.repeat_interleave(HEADS // SHARED, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * SCALE).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)
