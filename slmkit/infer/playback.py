"""What a listener hears who plays speech as it comes: when it begins, and where it stops for want of the next piece.

The listener plays the first piece when it is there and every other behind the one before. A piece that is not there
when the one before ends makes a gap: silence inside the speech. The clock reads no time itself, so that a server, a
benchmark and a simulation count alike.

Invariant: the sound heard and the gaps together last from the first piece to the end of the last.

Example:
    clock = PlaybackClock(began_sec=time.monotonic())
    clock.hear(time.monotonic(), piece_sec=len(wave) / sample_rate)  # for each piece, as it arrives
    clock.first_audio_sec, clock.num_gaps, clock.gap_sec
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_GAP_SEC = 0.001  # what is shorter counts as rounding of the arrival times


class PlaybackClock:
    """One listener of one answer. All times are of one clock, in seconds."""

    def __init__(self, began_sec: float) -> None:
        """`began_sec`: when the speech was asked for."""
        self.began_sec = began_sec
        self.first_audio_sec: float | None = None  # from the request to the first piece
        self.num_gaps = 0
        self.gap_sec = 0.0  # of all gaps together
        self._ends_sec = 0.0  # when all that has arrived is played

    def hear(self, now_sec: float, piece_sec: float) -> None:
        """A piece of `piece_sec` seconds arrives at `now_sec`, which is never before the last call's."""
        if piece_sec <= 0:
            return
        if self.first_audio_sec is None:
            self.first_audio_sec, self._ends_sec = now_sec - self.began_sec, now_sec
        late_sec = now_sec - self._ends_sec
        if late_sec >= LEAST_GAP_SEC:
            self.num_gaps += 1
            self.gap_sec += late_sec
            self._ends_sec = now_sec
        self._ends_sec += piece_sec


@dataclass(frozen=True, kw_only=True)
class Continuity:
    """What many listeners have heard. The times are None where nobody has heard anything."""

    answers: int  # of which something was heard
    with_gap: int  # of them
    gap_sec: float  # of all gaps together
    first_audio_median_sec: float | None
    first_audio_p95_sec: float | None  # 95 of 100 hear something so soon

    @staticmethod
    def of(clocks: Sequence[PlaybackClock]) -> "Continuity":
        first = [clock.first_audio_sec for clock in clocks if clock.first_audio_sec is not None]
        return Continuity(
            answers=len(first),
            with_gap=sum(clock.num_gaps > 0 for clock in clocks),
            gap_sec=sum(clock.gap_sec for clock in clocks),
            first_audio_median_sec=float(np.median(first)) if first else None,
            first_audio_p95_sec=float(np.percentile(first, 95)) if first else None,
        )

    @property
    def gap_share(self) -> float:
        """Of the answers: those with a gap, 0 to 1."""
        return self.with_gap / self.answers if self.answers else 0.0
