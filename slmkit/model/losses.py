"""Cross-entropy against a large weight matrix, and how the terms of the loss add up.

The logits [M, V] of a micro-batch never exist as a whole: `cross_entropy` works through slices of the targets and
computes both the loss and its gradients while a slice of logits is at hand. Sums are float32 whatever the weights are.

Targets come in `TargetSpan`s: targets in a row that choose among the same candidates, which are ranges of rows of the
weight. One range is the ordinary softmax over everything; the ranges of one stream are its decoupled softmax. A head
that serves streams of different codebooks has other candidates in each phase.

Shapes: M targets, D width, V rows of the weight (vocabulary or classes), T terms besides text.

Invariant: the result does not depend on how the targets are sliced (to float rounding), and with no target at all the
loss is 0 and every gradient a zero.

Example:
    scales = coefficients(batch.global_counts, group=0, text_weight=0.2)[batch.lm_groups]
    loss, nll, correct = cross_entropy(hidden, weight, None, targets, scales, [TargetSpan(len(targets), ((0, 1026),))])
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch

from slmkit.data.sequence import head_classes, phases
from slmkit.data.vocab import VocabLayout

# Of float32 logits at a time. Every slice adds to the gradient of the whole weight, which must not take longer than its
# products do. A GPU multiplies so much faster than it adds that it takes some 1 700 rows of a vocabulary of 150 000.
SLICE_BYTES, GPU_SLICE_BYTES = 2**27, 2**30
ROW_STEP = 256  # the buffer of logits has a multiple of so many rows, or as many as fit
FLOAT_BYTES = 4
Ranges = tuple[tuple[int, int], ...]  # (first, behind last) rows of the weight, in order


class TargetSpan(NamedTuple):
    """`num_targets` targets in a row, each one of the rows of the weight in `candidates`."""

    num_targets: int
    candidates: Ranges


class CrossEntropy(NamedTuple):
    """Result of `cross_entropy`. Gradients flow from `loss` alone."""

    loss: torch.Tensor  # float32 [], sum of scale * nll
    nll: torch.Tensor  # float32 [M], negative log-likelihood of each target
    correct: torch.Tensor  # bool [M], no candidate has a larger logit than the target


def coefficients(global_counts: torch.Tensor, *, group: int, text_weight: float) -> torch.Tensor:
    """What the summed cross-entropy of each term is multiplied by, float32 [1 + T], from float64 [1 + T] target counts.

    NTP (group 0): the mean over all targets. MTP: text_weight * text mean + (1 - text_weight) * mean over heads of the
    head means. A term without targets counts nothing.
    """
    if group == 0:
        return (1 / global_counts.sum().clamp_min(1)).expand_as(global_counts).float()
    weights = torch.full_like(global_counts, (1 - text_weight) / (len(global_counts) - 1))
    weights[0] = text_weight
    return (weights / global_counts.clamp_min(1)).float()


def candidates(layout: VocabLayout, num_rows: int, softmax: Literal["full", "stream"]) -> list[Ranges]:
    """The rows of the vocabulary that compete in each NTP term: text, then one per stream.

    "full": all `num_rows` everywhere. "stream": a stream's codes, for the first stream `<eosp>` too; for text all rows
    that are not codes.
    """
    if softmax == "full":
        return [((0, num_rows),)] * (1 + layout.num_streams)
    by_start = sorted((first, first + size) for _, first, size in layout.streams)
    borders = [0, *(border for pair in by_start for border in pair), num_rows]
    text = tuple((a, b) for a, b in zip(borders[::2], borders[1::2], strict=True) if a < b)
    streams: list[Ranges] = [((first, first + size),) for _, first, size in layout.streams]
    eosp = layout.id_of("<eosp>")
    streams[0] = tuple(sorted((*streams[0], (eosp, eosp + 1))))
    return [text, *streams]


def head_candidates(layout: VocabLayout, group: int) -> list[dict[int, Ranges]]:
    """The classes that compete in each speech head, by phase of the step: those of the stream that it then serves."""
    sizes = layout.codebook_sizes
    return [
        {phase: classes.candidates(sizes[(phase + head) % len(sizes)]) for phase in phases(group, len(sizes))}
        for head, classes in enumerate(head_classes(group, sizes))
    ]


def sum_by_term(values: torch.Tensor, terms: torch.Tensor, num_terms: int) -> torch.Tensor:
    """Float32 [num_terms], `values` [M] added up by their term, int64 [M]. Deterministic on every device."""
    is_term = terms[None] == torch.arange(num_terms, device=terms.device)[:, None]
    return is_term.float() @ values.float()


def cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    scales: torch.Tensor,
    spans: Sequence[TargetSpan],
    slice_bytes: int | None = None,
) -> CrossEntropy:
    """Cross-entropy of logits hidden @ weight.T + bias over the candidates of each span.

    hidden [M, D] and weight [V, D] of one float type, bias [V] or None, targets int64 [M] rows of the weight, scales
    float32 [M] of at least 0: the share of each target in the loss. The loss can be differentiated once.

    slice_bytes: of float32 logits at a time; by default as many as the device wants.

    To be called outside of what torch.compile compiles: how many targets a micro-batch has are Python's numbers here,
    each of which would be compiled anew. A slice is some twenty kernels over many numbers; launches do not bound it.
    """
    if slice_bytes is None:
        slice_bytes = GPU_SLICE_BYTES if hidden.is_cuda else SLICE_BYTES
    return CrossEntropy(
        *_SlicedCrossEntropy.apply(
            hidden, weight, bias, targets, scales, tuple(spans), slice_bytes, torch.is_grad_enabled()
        )
    )


class _SlicedCrossEntropy(torch.autograd.Function):
    """Gradients are computed in the forward pass, for a loss whose largest scale is 1, and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scales: torch.Tensor,
        spans: tuple[TargetSpan, ...],
        slice_bytes: int,
        with_gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        nll = torch.zeros(targets.shape, dtype=wide, device=hidden.device)
        correct = torch.zeros(targets.shape, dtype=torch.bool, device=hidden.device)
        scales = scales.to(wide)
        largest = scales.max().clamp_min(torch.finfo(wide).tiny) if len(scales) else scales.new_ones(())
        relative = scales / largest
        inputs = (hidden, weight, bias) if with_gradients else ()
        grads: list[Any] = [None if tensor is None else torch.zeros_like(tensor, dtype=wide) for tensor in inputs]
        for first, num_targets, ranges in _alike(spans):
            sizes = [stop - start for start, stop in ranges]
            num_rows = _slice_rows(num_targets, sum(sizes), slice_bytes)
            # One buffer serves all slices, the last and shorter one too: [rows, candidates], the ranges side by side.
            held = torch.empty(num_rows, sum(sizes), dtype=wide, device=hidden.device)
            narrow_held = held
            if with_gradients and hidden.dtype != wide:
                narrow_held = torch.empty_like(held, dtype=hidden.dtype)
            for begin in range(first, first + num_targets, num_rows):
                rows = slice(begin, min(begin + num_rows, first + num_targets))
                logits, narrow = held[: rows.stop - begin], narrow_held[: rows.stop - begin]
                for (start, stop), part in zip(ranges, logits.split(sizes, dim=1), strict=True):
                    _multiply(hidden[rows], weight[start:stop].T, out=part)
                    if bias is not None:
                        part += bias[start:stop]
                column = _columns(targets[rows], ranges)
                # Logits become exponentials in place.
                best = logits.amax(dim=1, keepdim=True)
                ahead = best - logits.gather(1, column)
                total = logits.sub_(best).exp_().sum(dim=1, keepdim=True)
                nll[rows], correct[rows] = (total.log() + ahead)[:, 0], (ahead == 0)[:, 0]
                if not with_gradients:
                    continue
                # Exponentials become the gradient of the logits: scale * (probability - 1 at the target).
                logits.scatter_add_(1, column, -total)
                _multiply_rows(logits, relative[rows, None] / total, out=narrow)
                of_hidden, of_weight, of_bias = grads
                for (start, stop), part in zip(ranges, narrow.split(sizes, dim=1), strict=True):
                    _add_product(of_hidden[rows], part, weight[start:stop])
                    _add_product(of_weight[start:stop], part.T, hidden[rows])
                    if of_bias is not None:
                        of_bias[start:stop] += part.sum(0, dtype=wide)
        if with_gradients:
            ctx.save_for_backward(largest, *grads)
            ctx.types = hidden.dtype, weight.dtype, weight.dtype
        ctx.mark_non_differentiable(nll, correct)
        return (nll * scales).sum(), nll, correct

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        largest, *grads = ctx.saved_tensors
        factor = upstream * largest
        # In place: autograd itself refuses a second pass over tensors that were changed.
        typed = [None if g is None else g.mul_(factor).to(kind) for g, kind in zip(grads, ctx.types, strict=True)]
        return (*typed, None, None, None, None, None)


def _alike(spans: Sequence[TargetSpan]) -> Iterator[tuple[int, int, Ranges]]:
    """Targets in a row with the same candidates: the first, how many (not none), the candidates."""
    first = 0
    for ranges, alike in itertools.groupby(spans, key=lambda span: span.candidates):
        num_targets = sum(span.num_targets for span in alike)
        if num_targets:
            yield first, num_targets, ranges
        first += num_targets


def _slice_rows(num_targets: int, num_candidates: int, slice_bytes: int) -> int:
    """Rows of the buffer of logits: as many as fit into `slice_bytes`; for fewer targets, their number rounded up.

    So micro-batches ask the allocator for few different sizes, however many targets they have.
    """
    most = max(1, slice_bytes // (FLOAT_BYTES * num_candidates))
    return min(most, -(-num_targets // ROW_STEP) * ROW_STEP)


def _columns(targets: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Int64 [m, 1], where each of the targets [m] stands when the ranges stand side by side."""
    (first, behind), *others = ranges
    column, width = targets - first, behind - first
    for start, stop in others:
        column = torch.where((targets >= start) & (targets < stop), targets - start + width, column)
        width += stop - start
    return column[:, None]


def _multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out = a @ b, with the precision of `out` where the device can give it."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(a @ b)


def _multiply_rows(values: torch.Tensor, factors: torch.Tensor, out: torch.Tensor) -> None:
    """out = values * factors; may change `values`. A GPU does it in one pass over memory, whatever type `out` has."""
    if values.is_cuda or values.dtype == out.dtype:
        torch.mul(values, factors, out=out)
    else:
        out.copy_(values.mul_(factors))


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a @ b, added in the precision of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total += a @ b
