"""The learning rate of a step, as a pure function of the step: nothing to save, nothing to restore.

Example:
    learning_rate(0, lr=1e-3, total_steps=100, num_warmup=10)     # 1e-4, the first of ten rising steps
"""

import math


def learning_rate(
    step: int, *, lr: float, total_steps: int, num_warmup: int, kind: str = "cosine", min_lr_share: float = 0.0
) -> float:
    """Rate of step `step` (0 is the first).

    It rises linearly and reaches `lr` in step num_warmup - 1. With kind "cosine" (Loshchilov and Hutter 2017) it then
    falls and would be `lr * min_lr_share` in step `total_steps`, one after the last; with "constant" it stays.
    Raises ValueError for another kind.
    """
    if kind not in ("cosine", "constant"):
        raise ValueError(f"there is no schedule {kind!r}")
    if step < num_warmup:
        return lr * (step + 1) / num_warmup
    if kind == "constant":
        return lr
    progress = min(1.0, (step - num_warmup) / max(1, total_steps - num_warmup))
    return lr * (min_lr_share + (1 - min_lr_share) * 0.5 * (1 + math.cos(math.pi * progress)))
