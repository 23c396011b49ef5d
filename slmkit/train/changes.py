"""What a start changes in a run that it continues, in sentences: options, and what they do to the learning rate.

A checkpoint keeps the config of the run that wrote it. What would make its curve meaningless is refused before
(`run.check_facts`); whatever else differs is said here, in the log, in metrics.jsonl and in a dry run.

Example:
    changes_since(checkpoint.state, config, done_steps=500, total_steps=1000)
    # ["optimizer.lr was 0.001, and is 0.0005", "the learning rate goes from 0.00081 in step 500 to 0.0004 in step 501"]
"""

import json
import math
from typing import Any

from slmkit.config.load import from_dict, to_dict
from slmkit.config.train import OptimizerConfig, ScheduleConfig, TrainConfig
from slmkit.errors import UserError
from slmkit.texts import excerpt

MAX_SHOWN = 120  # characters of a value


def written_by(config: TrainConfig, total_steps: int) -> dict[str, Any]:
    """What a checkpoint keeps for `changes_since`."""
    return {"config": to_dict(config), "total_steps": total_steps}


def changes_since(state: dict[str, Any], config: TrainConfig, *, done_steps: int, total_steps: int) -> list[str]:
    """A sentence for each option that is not what the writer of a checkpoint had, and for a step in the learning rate.

    Empty for a checkpoint of an earlier version, which does not know.
    """
    before, steps_before = state.get("config"), state.get("total_steps")
    if not isinstance(before, dict) or not isinstance(steps_before, int):
        return []
    theirs, ours = by_name(before), by_name(json.loads(json.dumps(to_dict(config))))
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    said = [f"{name} was {_shown(theirs.get(name))}, and is {_shown(ours.get(name))}" for name in names]
    if any(name.endswith(".weight") for name in names):
        said.append(
            f"the weights of the sources have changed: from step {done_steps + 1} on the order is that of the new "
            "weights, and in this epoch samples may be left out or come twice"
        )
    if steps_before != total_steps:
        said.append(f"the run had {steps_before} steps, and has {total_steps}")
    return said + _jump(before, config, done_steps, steps_before, total_steps)


def rate_of(optimizer: OptimizerConfig, schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step, of which 1 is the first.

    It rises linearly and reaches `lr` in the last step of the warm-up. The cosine (Loshchilov and Hutter 2017) then
    falls and would be `lr * min_lr_share` in the step after the last; "constant" stays.
    """
    lr, num_warmup = optimizer.lr, schedule.num_warmup(total_steps)
    if step <= num_warmup:
        return lr * step / num_warmup
    if schedule.kind == "constant":
        return lr
    progress = min(1.0, (step - 1 - num_warmup) / max(1, total_steps - num_warmup))
    return lr * (schedule.min_lr_share + (1 - schedule.min_lr_share) * 0.5 * (1 + math.cos(math.pi * progress)))


def _jump(
    before: dict[str, Any], config: TrainConfig, done_steps: int, steps_before: int, total_steps: int
) -> list[str]:
    """A sentence where the next step has another learning rate than it would have had."""
    try:
        optimizer = from_dict(OptimizerConfig, before.get("optimizer") or {})
        schedule = from_dict(ScheduleConfig, before.get("schedule") or {})
    except UserError:  # of another version
        return []
    if done_steps < 1 or done_steps >= total_steps:
        return []
    last, expected = (rate_of(optimizer, schedule, step, steps_before) for step in (done_steps, done_steps + 1))
    rate = rate_of(config.optimizer, config.schedule, done_steps + 1, total_steps)
    if abs(rate - expected) <= 1e-9 * max(rate, expected):
        return []
    where = f"from {last:.4g} in step {done_steps} to {rate:.4g} in step {done_steps + 1}"
    return [f"the learning rate jumps {where}; unchanged it would go on with {expected:.4g}"]


def by_name(value: Any, name: str = "") -> dict[str, Any]:
    """Every value inside groups by its dotted name, such as optimizer.lr; sources[0].weight in lists of groups."""
    if isinstance(value, dict) and value:
        inner = [by_name(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        inner = [by_name(part, f"{name}[{index}]") for index, part in enumerate(value)]
    else:
        return {name: value}
    return {key: part for group in inner for key, part in group.items()}


def _shown(value: Any) -> str:
    return excerpt("null" if value is None else value, MAX_SHOWN)
