"""What a run says on the console: a line per logged step.

    step 1200/10000  loss 3.412  acc 0.41  12.3k tok/s  410 h/h  mfu 38 %  wait 1 %  left 2 h 13 min

The time left comes from the pace of the last records of this start, which knows only steps, and from the time that all
else (evaluation, speech samples, saving) took per step of this start so far.

Example:
    progress = Progress(total_steps=10_000, done_steps=500)
    logger.info(progress.line(510, record))
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

RECENT = 10  # records whose pace counts


class Progress:
    """How far a run is. Create it where its first step begins."""

    def __init__(self, *, total_steps: int, done_steps: int) -> None:
        self._total, self._first, self._last = total_steps, done_steps, done_steps
        self._start, self._paced_sec = time.monotonic(), 0.0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def line(self, step: int, record: dict[str, Any]) -> str:
        """The line of a logged step; to be called once for each, in order."""
        left_sec = self._left_sec(step, record["speed/sec_per_step"])
        return f"step {step}/{self._total}  {numbers(record)}  left {duration(left_sec)}"

    def _left_sec(self, step: int, sec_per_step: float) -> float:
        num_steps, self._last = step - self._last, step
        self._recent.append((num_steps, num_steps * sec_per_step))
        self._paced_sec += num_steps * sec_per_step
        other_sec = max(0.0, time.monotonic() - self._start - self._paced_sec) / (step - self._first)
        steps, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        return (self._total - step) * (seconds / steps + other_sec)


def numbers(record: dict[str, Any]) -> str:
    """Loss, accuracy and speeds of a record; what is null or absent is left out."""
    forms: dict[str, Callable[[float], str]] = {
        "loss": "loss {:.3f}".format,
        "accuracy": "acc {:.2f}".format,
        "speed/tokens_per_sec": lambda value: f"{thousands(value)} tok/s",
        "speed/audio_hours_per_hour": lambda value: f"{thousands(value)} h/h",
        "speed/mfu": lambda value: f"mfu {100 * value:.0f} %",
        "speed/data_wait_share": lambda value: f"wait {100 * value:.0f} %",
    }
    return "  ".join(form(record[name]) for name, form in forms.items() if record.get(name) is not None)


def thousands(value: float) -> str:
    """12300 as 12.3k, 4560000 as 4.56M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """The two largest units: 3 d 4 h, 2 h 13 min, 5 min 20 s, 12 s."""
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    rest = max(0, round(seconds))
    parts: list[str] = []
    for name, size in units:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"
