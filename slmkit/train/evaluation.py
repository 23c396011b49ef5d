"""Held-out loss, accuracy and perplexity of every term, each sample counted exactly once over all ranks.

Invariant: the numbers are those of one process that reads every sample once, to float rounding.

Example:
    evaluate(engine.module, data, world, device, micro_rows=2, row_tokens=2048, names=["text", "a", "b", "c"])
"""

from collections.abc import Callable, Sequence

import torch

from slmkit.data.examples import TrainingData
from slmkit.data.loader import micro_batches
from slmkit.data.steps import Steps
from slmkit.model.losses import coefficients
from slmkit.train.engine import sum_over_ranks
from slmkit.train.metrics import per_term
from slmkit.train.records import Record
from slmkit.world import BatchSplit, World


def evaluate(
    model: torch.nn.Module,
    data: TrainingData,
    world: World,
    device: torch.device,
    *,
    micro_rows: int,
    row_tokens: int,
    names: Sequence[str],
    text_loss_weight: float,
    is_stopped: Callable[[], bool] = lambda: False,
    num_workers: int = 0,
) -> Record | None:
    """One record with names "eval/...". Every rank must call it; the model is left in training mode.

    `is_stopped` is asked before every micro-batch and says the same on every rank; once it holds there is no record.
    """
    split = BatchSplit(global_rows=micro_rows * world.size, micro_rows=micro_rows, world_size=world.size)
    steps = Steps(data.plan(seed=0, row_tokens=row_tokens, shuffle=False), split.global_rows).walk(epochs=1)
    batches = micro_batches(data, split, steps, rank=world.rank, row_tokens=row_tokens, num_workers=num_workers)
    totals = torch.zeros(2 * len(names) + 1, dtype=torch.float64, device=device)
    counts = torch.zeros(len(names), dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for _, _, batch in batches:
            if is_stopped():
                model.train()
                return None
            output = model(batch.to(device))
            samples = torch.full((1,), len(batch.keys), device=device)
            totals += torch.cat([output.sums, output.correct, samples]).double()
            counts += batch.global_counts  # of all ranks together
    model.train()
    sums, correct, samples = sum_over_ranks(totals).cpu().split([len(names), len(names), 1])
    shares = coefficients(counts, group=data.format.group, text_weight=text_loss_weight)
    losses = sums / counts
    return {
        "eval/loss": float((shares.double() * sums).sum()),
        "eval/samples": int(samples.item()),
        **per_term(losses, names, "eval/loss"),
        **per_term(correct / counts, names, "eval/accuracy"),
        **per_term(losses.exp(), names, "eval/perplexity"),
    }
