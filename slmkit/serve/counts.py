"""What a server has done since it started, counted by all its threads.

Example:
    counts = Counts()
    counts.add("asked")
    counts.values()["requests"]["asked"]
"""

import collections
import statistics
import threading
import time
from typing import Any, Literal

Outcome = Literal["asked", "done", "refused", "failed", "given_up"]
OUTCOMES: tuple[Outcome, ...] = ("asked", "done", "refused", "failed", "given_up")
KEPT_TIMES = 256  # of the newest answers


class Counts:
    """See the module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes = dict.fromkeys(OUTCOMES, 0)
        self._audio_sec = self._busy_sec = 0.0
        self._first_audio_sec: collections.deque[float] = collections.deque(maxlen=KEPT_TIMES)
        self._answer_sec: collections.deque[float] = collections.deque(maxlen=KEPT_TIMES)
        self._started = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[outcome] += 1

    def worked(self, seconds: float) -> None:
        """So long the model and the codec have computed."""
        with self._lock:
            self._busy_sec += seconds

    def first_audio(self, seconds: float) -> None:
        """An answer has its first sound, so long after it was asked for."""
        with self._lock:
            self._first_audio_sec.append(seconds)

    def answered(self, seconds: float, audio_sec: float) -> None:
        """An answer is whole, so long after it was asked for."""
        with self._lock:
            self._outcomes["done"] += 1
            self._answer_sec.append(seconds)
            self._audio_sec += audio_sec

    @property
    def answer_sec(self) -> float:
        """What an answer takes, waiting included; the middle of the newest. 1 before there was any."""
        with self._lock:
            return statistics.median(self._answer_sec) if self._answer_sec else 1.0

    def values(self) -> dict[str, Any]:
        """Plain values. Seconds of work per second of sound: below 1 is faster than real time."""
        with self._lock:
            return {
                "uptime_sec": round(time.monotonic() - self._started, 3),
                "requests": dict(self._outcomes),
                "audio_sec": round(self._audio_sec, 3),
                "busy_sec": round(self._busy_sec, 3),
                "real_time_factor": round(self._busy_sec / self._audio_sec, 4) if self._audio_sec else None,
                "time_to_first_audio_sec": _spread(list(self._first_audio_sec)),
                "answer_sec": _spread(list(self._answer_sec)),
            }


def _spread(seconds: list[float]) -> dict[str, float] | None:
    """Middle and largest of the newest."""
    if not seconds:
        return None
    return {"median": round(statistics.median(seconds), 4), "max": round(max(seconds), 4), "of": len(seconds)}
