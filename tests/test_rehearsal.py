"""The rehearsal of a GPU notices what a GPU would wait for or refuse, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from rehearsal import DEVICE, Slip, rehearsal

Act = Callable[[torch.Tensor], object]
COUNTS = torch.tensor([1, 2, 0])


def filled(values: torch.Tensor, place: object) -> torch.Tensor:
    copy = values.clone()
    copy[place] = 1.0
    return copy


READS: dict[str, Act] = {
    "item": lambda x: x[0, 0].item(),
    "int": lambda x: int(x[0, 0]),
    "if": lambda x: 1 if x[0, 0] > 0 else 0,
    "any in a condition": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu", torch.float32),
    "copy into host memory": lambda x: torch.zeros(3, 4).copy_(x),
    "equal": lambda x: torch.equal(x, x),
}
SHAPES: dict[str, Act] = {
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "mask of rows": lambda x: x[:, x[0] > 0],
    "write by a mask": lambda x: filled(x, x > 0),
    "repeats": lambda x: x.repeat_interleave(COUNTS.to(DEVICE, non_blocking=True), dim=0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x[0].long().bincount(),
}
MIXED: dict[str, Act] = {
    "sum": lambda x: x + torch.zeros(3, 4),
    "product": lambda x: x @ torch.zeros(4, 2),
    "index": lambda x: x[torch.tensor([0, 2])],
    "index_select": lambda x: x.index_select(0, torch.tensor([0, 2])),
    "write by an index": lambda x: filled(x, torch.tensor([0, 2])),
    "where": lambda x: torch.where(torch.zeros(3, 4, dtype=torch.bool), x, x),
    "in a backward pass": lambda x: Reversed.apply(x.clone().requires_grad_()).sum().backward(),
}
UPLOADS: dict[str, Act] = {
    "to": lambda x: torch.zeros(2).to(DEVICE),
    "list": lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
    "copy": lambda x: x.copy_(torch.zeros(3, 4)),
}
FREE: dict[str, Act] = {
    "a step": lambda x: (x.clone().requires_grad_() @ x.T).relu().sum().backward(),
    "numbers": lambda x: x * 0.5 + torch.tensor(2.0),
    "sort": lambda x: x[x[:, 0].sort(stable=True).indices],
    "index": lambda x: filled(x, torch.arange(2, device=DEVICE)),
    "repeats": lambda x: x.repeat_interleave(2, dim=0),
    "mask": lambda x: x.masked_fill(x > 0, 0.0),
    "pinned": lambda x: torch.zeros(2).to(DEVICE, non_blocking=True) + x[0, :2],
    "host alone": lambda x: torch.zeros(3).nonzero().tolist(),
}


class Reversed(torch.autograd.Function):
    """Its backward pass has a tensor of the host."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.ones(3, 4)


def on_device() -> torch.Tensor:
    return torch.zeros(3, 4, device=DEVICE)


@pytest.mark.parametrize(
    ("acts", "message"),
    [
        (READS, "is waited for by"),
        (UPLOADS, "a copy to the device is waited for"),
        (SHAPES, "a shape that depends on content"),
        (MIXED, "tensors on several devices"),
    ],
    ids=["reads", "uploads", "shapes", "mixed"],
)
def test_what_waits_or_is_refused_raises(acts: dict[str, Act], message: str) -> None:
    for name, act in acts.items():
        with rehearsal(), pytest.raises(Slip, match=message):
            act(on_device())
            pytest.fail(f"{name} went through")


def test_what_does_not_wait_goes_through() -> None:
    for act in FREE.values():
        with rehearsal() as watch:
            act(on_device())
        assert not watch.reads


def test_with_answers_reads_are_counted_and_give_zeros() -> None:
    for act in READS.values():
        with rehearsal(answers=True) as watch:
            act(on_device())
        assert len(watch.reads) == 1
        assert __file__ in watch.reads[0]
    for act in UPLOADS.values():
        with rehearsal(answers=True) as watch:
            act(on_device())
        assert (len(watch.reads), len(watch.uploads)) == (0, 1)
    with rehearsal(answers=True):
        assert on_device().tolist() == [[0.0] * 4] * 3
        assert on_device().bool()[0, 0].item() is False
    for acts in (SHAPES, MIXED):
        with rehearsal(answers=True), pytest.raises(Slip):
            next(iter(acts.values()))(on_device())


def test_a_tensor_is_on_a_gpu_inside_a_rehearsal_alone() -> None:
    with rehearsal() as watch:
        assert on_device().is_cuda
        assert not torch.zeros(1).is_cuda
    assert not on_device().is_cuda
    assert watch.operators["aten.zeros.default"] + watch.operators["aten.empty.memory_format"] > 0
