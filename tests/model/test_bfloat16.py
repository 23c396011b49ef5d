"""bfloat16 against float32, on the CPU: what a training step rounds, and no more.

bfloat16 keeps 8 bits: rounding to it changes a number by at most HALF = 2^-8 of itself. Inputs are bfloat16 numbers, so
that both sides begin with the same ones; sums are float32 on both, and what those add is lost in a factor of MARGIN.
"""

import pytest
import torch
from tiny_models import tiny_model

from slmkit.model.architecture import TESTED
from slmkit.model.attention import Packing, packed_attention
from slmkit.model.losses import CrossEntropy, TargetSpan, cross_entropy

HALF = 2.0**-8
MARGIN = 1.25
NUM_TARGETS, WIDTH, ROWS = 200, 32, 90


def numbers(*shape: int, seed: int) -> torch.Tensor:
    """Float32 normal numbers that are bfloat16 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """The norm of the difference, in norms of `exact`."""
    return ((got.float() - exact).norm() / exact.norm()).item()


def loss_of(
    dtype: torch.dtype, slice_bytes: int | None = None
) -> tuple[CrossEntropy, list[torch.Tensor], torch.Tensor]:
    """Cross-entropy, its gradients and its logits, of targets that all count the same."""
    inputs = [numbers(NUM_TARGETS, WIDTH, seed=0), numbers(ROWS, WIDTH, seed=1) / 4, numbers(ROWS, seed=2)]
    typed = [value.to(dtype).requires_grad_() for value in inputs]
    targets = torch.arange(NUM_TARGETS) % ROWS
    scales = torch.full((NUM_TARGETS,), 1 / NUM_TARGETS)
    result = cross_entropy(*typed, targets, scales, [TargetSpan(NUM_TARGETS, ((0, ROWS),))], slice_bytes)
    return result, list(torch.autograd.grad(result.loss, typed)), inputs[0] @ inputs[1].T + inputs[2]


def test_the_loss_is_rounded_once_in_its_logits() -> None:
    """A CPU rounds each product to bfloat16, which moves a logit z by HALF |z|. The cross-entropy, the logarithm of a
    sum of exponentials less one logit, moves by at most twice the largest such step, and so does the mean. In
    gradients, sums over many logits, most of that cancels: below HALF is left of it, beside their own two roundings.
    """
    (exact, exact_grads, logits), (got, grads, _) = loss_of(torch.float32), loss_of(torch.bfloat16)
    step = MARGIN * HALF * logits.abs().max().item()
    assert got.loss.dtype == got.nll.dtype == torch.float32
    assert (got.nll - exact.nll).abs().max().item() <= 2 * step
    assert abs((got.loss - exact.loss).item()) <= 2 * step
    for ours, theirs in zip(grads, exact_grads, strict=True):
        assert ours.dtype == torch.bfloat16
        assert error(ours, theirs) <= 3 * HALF


def test_the_loss_adds_up_in_float32() -> None:
    """Slices of one target each: in bfloat16 the 200th would change a sum of 199 by its rounding alone. What is left is
    the one rounding of the whole."""
    (whole, whole_grads, _), (sliced, grads, _) = loss_of(torch.bfloat16), loss_of(torch.bfloat16, slice_bytes=1)
    torch.testing.assert_close(sliced.loss, whole.loss, atol=0, rtol=1e-5)
    for ours, theirs in zip(grads, whole_grads, strict=True):
        assert error(ours, theirs.float()) <= MARGIN * 2 * HALF


@pytest.mark.parametrize("arch", TESTED)
def test_norms_round_twice(arch: str) -> None:
    """The normalized number, and its product with the weight: each by HALF of itself. Squares, their mean and its root
    are float32."""
    model = tiny_model(arch=arch)
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    assert norms
    for norm in norms:
        states = 64 * numbers(5, norm.weight.shape[0], seed=3)
        with torch.no_grad():
            norm.weight.copy_(norm.weight.bfloat16().float())
            exact = norm(states)
            got = norm.bfloat16()(states.bfloat16())
        assert got.dtype == torch.bfloat16
        assert ((got.float() - exact).abs() <= MARGIN * 2 * HALF * exact.abs()).all()


def test_packed_attention_rounds_its_weights_and_its_output() -> None:
    """Each output is a mean of values, whose weights (a softmax of float32 scores) and result are rounded once:
    together by at most 2 HALF of the largest value. Gradients pass four such products."""
    lengths = (5, 1, 17, 9)
    borders = torch.tensor([0, *lengths]).cumsum(0).int()
    packing = Packing(borders, sum(lengths), lengths)
    exact = [numbers(1, heads, sum(lengths), 16, seed=5 + heads).requires_grad_() for heads in (4, 2, 2)]
    half = [value.detach().bfloat16().requires_grad_() for value in exact]
    ours, theirs = (
        packed_attention(torch.nn.Module(), *values, None, scaling=0.25, packing=packing)[0] for values in (half, exact)
    )
    assert ours.dtype == torch.bfloat16
    largest = exact[2].abs().max().item()
    assert (ours.float() - theirs).abs().max().item() <= MARGIN * 2 * HALF * largest
    upstream = numbers(*theirs.shape, seed=9)
    theirs.backward(upstream)
    ours.backward(upstream.bfloat16())
    for a, b in zip(half, exact, strict=True):
        assert error(a.grad, b.grad) <= MARGIN * 4 * HALF
