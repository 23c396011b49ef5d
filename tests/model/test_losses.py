"""The sliced cross-entropy against its naive twin, and how terms are weighted."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_layout

from slmkit.model import losses
from slmkit.model.losses import TargetSpan, candidates, coefficients, cross_entropy, sum_by_term

M, D, V = 23, 12, 37
SPANS = [TargetSpan(9, ((0, 10), (20, 37))), TargetSpan(0, ((0, 37),)), TargetSpan(14, ((10, 20), (36, 37)))]


def problem(dtype: torch.dtype, spans: list[TargetSpan], seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(M, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=generator).to(dtype).requires_grad_()
    scales = torch.rand(M, generator=generator)
    targets = []
    for count, ranges in spans:
        rows = torch.cat([torch.arange(a, b) for a, b in ranges])
        targets.append(rows[torch.randint(len(rows), (count,), generator=generator)])
    return hidden, weight, bias, torch.cat(targets), scales


def naive(hidden, weight, bias, targets, scales, spans):
    """All logits at once, the rows that do not compete at minus infinity."""
    logits = hidden.double() @ weight.double().T + bias.double()
    first = 0
    for count, ranges in spans:
        allowed = torch.zeros(V, dtype=torch.bool)
        for start, stop in ranges:
            allowed[start:stop] = True
        rows = torch.arange(len(logits))[:, None]
        here = (rows >= first) & (rows < first + count)
        logits = torch.where(here & ~allowed, -torch.inf, logits)
        first += count
    nll = F.cross_entropy(logits, targets, reduction="none")
    return (nll * scales).sum(), nll, logits.argmax(1) == targets


@pytest.mark.parametrize("slice_bytes", [1, 700, losses.SLICE_BYTES])
@pytest.mark.parametrize("spans", [[TargetSpan(M, ((0, V),))], SPANS], ids=["full", "ranges"])
def test_equals_the_naive_twin(spans: list[TargetSpan], slice_bytes: int) -> None:
    inputs = problem(torch.float32, spans)
    ours = cross_entropy(*inputs, spans, slice_bytes)
    twin = naive(*inputs, spans)
    torch.testing.assert_close(ours.loss, twin[0].float())
    torch.testing.assert_close(ours.nll, twin[1].float())
    assert torch.equal(ours.correct, twin[2])
    upstream = 0.37  # as a loss scaler or an engine would put in front
    of_ours = torch.autograd.grad(upstream * ours.loss, inputs[:3])
    of_twin = torch.autograd.grad(upstream * twin[0], inputs[:3])
    for got, expected in zip(of_ours, of_twin, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_its_inputs(dtype: torch.dtype) -> None:
    """Logits and gradients carry one rounding of the half type: 3 significant digits."""
    spans = [TargetSpan(M, ((0, V),))]
    inputs = problem(dtype, spans)
    scales = inputs[4] * 1e-6  # a share of a global batch; in float16 an unscaled gradient would vanish
    ours = cross_entropy(*inputs[:4], scales, spans)
    twin = naive(*inputs[:4], scales, spans)
    assert ours.loss.dtype == torch.float32
    torch.testing.assert_close(ours.nll, twin[1].float(), atol=0.1, rtol=0.02)
    scaled = 1e5
    of_ours = torch.autograd.grad(scaled * ours.loss, inputs[:3])
    of_twin = torch.autograd.grad(scaled * twin[0], inputs[:3])
    for got, expected in zip(of_ours, of_twin, strict=True):
        assert got.dtype == dtype
        error = (got - expected).float().norm() / expected.float().norm()
        assert error < 0.02


def test_double_precision_stays_double() -> None:
    spans = [TargetSpan(M, ((0, V),))]
    inputs = problem(torch.float64, spans)
    ours, twin = cross_entropy(*inputs, spans), naive(*inputs, spans)
    torch.testing.assert_close(ours.nll, twin[1], atol=1e-13, rtol=1e-13)
    of_ours, of_twin = (torch.autograd.grad(result[0], inputs[:3]) for result in (ours, twin))
    for got, expected in zip(of_ours, of_twin, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_without_targets_the_loss_is_zero_and_gradients_are_zeros() -> None:
    weight = torch.randn(V, D, requires_grad=True)
    hidden = torch.randn(0, D, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    result = cross_entropy(hidden, weight, None, none, torch.zeros(0), [TargetSpan(0, ((0, V),))])
    result.loss.backward()
    assert result.loss == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_targets_of_no_weight_give_no_gradient() -> None:
    hidden, weight, bias, targets, scales = problem(torch.float32, [TargetSpan(M, ((0, V),))])
    cross_entropy(hidden, weight, bias, targets, scales * 0, [TargetSpan(M, ((0, V),))]).loss.backward()
    assert torch.equal(weight.grad, torch.zeros(V, D))


def test_a_second_backward_pass_is_refused() -> None:
    inputs = problem(torch.float32, [TargetSpan(M, ((0, V),))])
    loss = cross_entropy(*inputs, [TargetSpan(M, ((0, V),))]).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_no_gradients_are_computed_under_no_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_add_product", None)
    inputs = problem(torch.float32, [TargetSpan(M, ((0, V),))])
    with torch.no_grad():
        assert cross_entropy(*inputs, [TargetSpan(M, ((0, V),))]).loss > 0


def test_coefficients_of_ntp_are_one_mean_over_all_targets() -> None:
    got = coefficients(torch.tensor([3.0, 4, 5, 8], dtype=torch.float64), group=0, text_weight=0.2)
    torch.testing.assert_close(got, torch.full((4,), 1 / 20))


def test_coefficients_of_mtp_weigh_text_and_the_mean_of_heads() -> None:
    got = coefficients(torch.tensor([4.0, 10, 10], dtype=torch.float64), group=2, text_weight=0.2)
    torch.testing.assert_close(got, torch.tensor([0.05, 0.04, 0.04]))
    without_text = coefficients(torch.tensor([0.0, 10, 10], dtype=torch.float64), group=2, text_weight=0.2)
    assert torch.isfinite(without_text).all()


def test_candidates_of_streams() -> None:
    layout = tiny_layout(0)
    text, a, b, c = candidates(layout, layout.size + 5, "stream")
    eosp = layout.id_of("<eosp>")
    assert text == ((0, 40), (88, layout.size + 5))
    assert a == ((40, 56), (eosp, eosp + 1))
    assert (b, c) == (((56, 72),), ((72, 88),))
    assert candidates(layout, 99, "full") == [((0, 99),)] * 4


def test_sum_by_term() -> None:
    got = sum_by_term(torch.tensor([1.0, 2, 4, 8]), torch.tensor([2, 0, 2, 2]), 4)
    assert got.tolist() == [2, 0, 13, 0]


@pytest.mark.parametrize(("num_candidates", "most"), [(1026, 16), (152_000, 7)])
def test_micro_batches_ask_for_few_sizes_of_buffers(num_candidates: int, most: int) -> None:
    """Whatever number of targets they have, up to 4 096; and for no more than a slice or its targets need."""
    found = {}
    for num_targets in range(1, 4097):
        found[num_targets] = losses._slice_rows(num_targets, num_candidates, losses.GPU_SLICE_BYTES)
    assert len(set(found.values())) == most
    limit = losses.GPU_SLICE_BYTES // (4 * num_candidates)
    assert all(min(n, limit) <= rows <= min(n + losses.ROW_STEP, limit) for n, rows in found.items())
