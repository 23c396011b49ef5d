"""Which samples stand in which row of which step, as a pure function of lengths, seed and epoch.

A row holds whole utterances, up to `row_tokens` positions. Samples are shuffled, cut into windows of `window` samples,
packed inside each window by best fit decreasing (Johnson 1973), and the rows of a window are shuffled again. Step n of
an epoch is rows n * global_rows .. (n + 1) * global_rows - 1; the last step may lack rows, never samples.

Nothing here knows of ranks, files or tokens: the same plan serves any number of processes.

Invariant (law): every sample that fits a row is in exactly one row; the others are listed in `too_long`.

Example:
    plan = plan_epoch(lengths, seed=0, epoch=3, row_tokens=2048)
    plan.step_rows(step=7, global_rows=64)      # 64 arrays of sample numbers
"""

import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DEFAULT_WINDOW = 8192

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rows of one epoch: row r holds samples[starts[r] : starts[r + 1]]."""

    samples: IntArray  # [samples that fit]
    starts: IntArray  # [rows + 1]
    too_long: IntArray  # samples longer than a row, left out

    @property
    def num_rows(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> IntArray:
        """Sample numbers of a row; none beyond the last row."""
        if number >= self.num_rows:
            return self.samples[:0]
        return self.samples[self.starts[number] : self.starts[number + 1]]

    def num_steps(self, global_rows: int) -> int:
        """Steps of the epoch."""
        return -(-self.num_rows // global_rows)

    def step_rows(self, step: int, global_rows: int) -> list[IntArray]:
        """The `global_rows` rows of a step, the last ones of the epoch's last step possibly empty."""
        return [self.row(number) for number in range(step * global_rows, (step + 1) * global_rows)]


def plan_epoch(
    lengths: npt.NDArray[Any],
    *,
    seed: int,
    epoch: int,
    row_tokens: int,
    window: int = DEFAULT_WINDOW,
    shuffle: bool = True,
) -> Plan:
    """Plan an epoch over samples of `lengths` positions, int [n]. Without `shuffle`, windows follow the given order."""
    lengths = np.asarray(lengths, dtype=np.int64)
    fits = np.flatnonzero(lengths <= row_tokens)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
    order = rng.permutation(fits) if shuffle else fits
    rows: list[list[int]] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        packed = [[int(part[i]) for i in row] for row in pack_best_fit(lengths[part], row_tokens)]
        rows += [packed[i] for i in rng.permutation(len(packed))] if shuffle else packed
    return Plan(
        samples=np.array([sample for row in rows for sample in row], dtype=np.int64),
        starts=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        too_long=np.flatnonzero(lengths > row_tokens),
    )


def pack_best_fit(lengths: npt.NDArray[Any], capacity: int) -> list[list[int]]:
    """Pack items, longest first, each into the open bin it fills best; returns item numbers per bin.

    Raises ValueError when an item is longer than a bin.
    """
    if len(lengths) and int(np.max(lengths)) > capacity:
        raise ValueError(f"an item of {np.max(lengths)} does not fit a bin of {capacity}")
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free room -> bins with exactly that room
    rooms: list[int] = []  # keys of by_room, sorted
    for item in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable"):
        length = int(lengths[item])
        place = bisect.bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(int(item))
        left = room - length
        if left not in by_room:
            by_room[left] = []
            bisect.insort(rooms, left)
        by_room[left].append(chosen)
    return bins
