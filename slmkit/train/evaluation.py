"""Losses and accuracies by term: of a training step, and of the held-out data.

A term is the text, a stream (group 0) or a speech head. Sums stay on the device until a step is logged; then one
all-reduce brings those of all ranks together.

Invariant: the numbers are those of one process that reads every sample once, to float rounding.

Example:
    meter.add(output, batch)
    loss, terms = meter.result(names)
    held_out_losses(engine.module, data, world, device, micro_rows=2, row_tokens=2048, names=names)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from slmkit.data.examples import TrainingData
from slmkit.data.loader import ahead, micro_batches
from slmkit.data.steps import Steps
from slmkit.group import sum_over_ranks
from slmkit.model.losses import coefficients
from slmkit.train.metrics import Record
from slmkit.world import BatchSplit, World


def term_names(letters: Sequence[str], group: int) -> list[str]:
    """Names of the loss terms: text, then one per stream (group 0) or per head: a1 b1 c1 a2 ...

    Heads that serve several streams have numbers: head1 head2 ...
    """
    if group == 0:
        return ["text", *letters]
    if group % len(letters):
        return ["text", *(f"head{i + 1}" for i in range(group))]
    return ["text", *(f"{letter}{n + 1}" for n in range(group // len(letters)) for letter in letters)]


def means_of(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Means [2 + T] of sums [1 + T] over counts [1 + T]: text, all speech together, then every term of speech."""
    speech = sums[1:].sum(dim=0, keepdim=True) / counts[1:].sum(dim=0, keepdim=True)
    return torch.cat([sums[:1] / counts[:1], speech, sums[1:] / counts[1:]])


def per_term(means: torch.Tensor, names: Sequence[str], prefix: str) -> Record:
    """Values of `means_of` under "prefix/name"; null where a term had no targets (NaN)."""
    text, *speech = names
    pairs = zip([text, "speech", *speech], means.tolist(), strict=True)
    return {f"{prefix}/{name}": None if math.isnan(value) else value for name, value in pairs}


class StepMeter:
    """Sums of one optimizer step over the micro-batches of this rank, kept on the device until `result`."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None

    def add(self, output: Any, batch: Any) -> None:
        """Count a micro-batch in: its loss, sums and correct answers per term."""
        parts = torch.cat([output.loss.detach()[None], output.sums.detach(), output.correct.detach()]).double()
        self._total = parts if self._total is None else self._total + parts
        self._counts = batch.global_counts

    def result(self, names: Sequence[str]) -> tuple[float, Record]:
        """Loss of the global batch; accuracy over all its targets; mean loss and accuracy of each term.

        Every rank must call it.
        """
        assert self._total is not None
        assert self._counts is not None
        total = sum_over_ranks(self._total.clone())
        sizes = [len(total), len(self._counts)]
        total, counts = torch.cat([total, self._counts]).cpu().split(sizes)  # one read
        sums, correct = total[1:].chunk(2)
        return total[0].item(), {
            "accuracy": (correct.sum() / counts.sum()).item(),
            **per_term(means_of(sums, counts), names, "loss"),
            **per_term(means_of(correct, counts), names, "accuracy"),
        }


def held_out_losses(
    model: torch.nn.Module,
    data: TrainingData,
    world: World,
    device: torch.device,
    *,
    micro_rows: int,
    row_tokens: int,
    names: Sequence[str],
    text_loss_weight: float,
    num_workers: int = 0,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Record | None:
    """Loss, accuracy and perplexity of every term, under names "eval/...", each sample counted exactly once.

    Every rank must call it; the model is left in training mode. `is_stopped` is asked before every micro-batch and says
    the same on every rank; once it holds there is no record.
    """
    split = BatchSplit(global_rows=micro_rows * world.size, micro_rows=micro_rows, world_size=world.size)
    steps = Steps(data.plan(seed=0, row_tokens=row_tokens, shuffle=False), split.global_rows).walk(epochs=1)
    batches = micro_batches(data, split, steps, rank=world.rank, row_tokens=row_tokens, num_workers=num_workers)
    totals = torch.zeros(2 * len(names) + 1, dtype=torch.float64, device=device)
    counts = torch.zeros(len(names), dtype=torch.float64, device=device)
    model.eval()
    with torch.no_grad():
        for _, _, batch in ahead(batches, lambda batch: batch.to(device)):
            if is_stopped():
                model.train()
                return None
            output = model(batch)
            samples = torch.full((1,), len(batch.keys), device=device)
            totals += torch.cat([output.sums, output.correct, samples]).double()
            counts += batch.global_counts  # of all ranks together
    model.train()
    counts = counts.cpu()
    sums, correct, samples = sum_over_ranks(totals).cpu().split([len(names), len(names), 1])
    shares = coefficients(counts, group=data.format.group, text_weight=text_loss_weight)
    losses = means_of(sums, counts)
    return {
        "eval/loss": float((shares.double() * sums).sum()),
        "eval/samples": int(samples.item()),
        **per_term(losses, names, "eval/loss"),
        **per_term(means_of(correct, counts), names, "eval/accuracy"),
        **per_term(losses.exp(), names, "eval/perplexity"),
    }
