"""Which samples stand in which row, window by window: any window of any epoch is known without planning another.

A source is an endless row of passes over its samples, each pass in a random order of its own (`permuted`). Epoch e of
a source with weight w and n samples takes the places floor(e * w * n) .. floor((e + 1) * w * n) - 1 of it. An epoch is
cut into windows of about `window` samples, in each of which every source has its even share. Samples too long for a row
drop out inside their window. The others are packed into rows of up to `row_tokens` positions by best fit decreasing
(Johnson 1973), whatever source they come from, and the rows of a window are shuffled.

Nothing here knows of ranks, files or tokens: the same plan serves any number of processes.

Invariant (law): with weight 1 every sample that fits a row is in exactly one row of an epoch, with weight 1 / k in
exactly one row of every k epochs from a multiple of k on. Memory does not grow with the number of samples.

Example:
    plan = Plan([WeightedShards(starts=np.array([0, 1000]))], lambda numbers: lengths[numbers], seed=0, row_tokens=2048)
    plan.window(epoch=3, number=0).row(7)      # sample numbers
"""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

DEFAULT_WINDOW = 8192
KEPT_WINDOWS = 4  # planned windows that are remembered
ROUNDS = 8  # of the network behind `permuted`: an even number, half of them for each digit

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedShards:
    """n samples in shards; `starts` are the numbers of each shard's first sample, then n."""

    starts: IntArray  # [shards + 1]
    weight: Fraction = Fraction(1)  # passes per epoch

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.starts[-1])

    def span(self, epoch: int) -> tuple[int, int]:
        """First place and end of an epoch in the endless row of passes."""
        first, end = (int(number * self.weight * self.size) for number in (epoch, epoch + 1))
        return first, end


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Row r holds samples[starts[r] : starts[r + 1]]."""

    samples: IntArray  # [samples that fit]
    starts: IntArray  # [rows + 1]
    too_long: IntArray  # samples longer than a row, left out

    @property
    def num_rows(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> IntArray:
        """Sample numbers of a row."""
        return self.samples[self.starts[number] : self.starts[number + 1]]


class Plan:
    """The windows of every epoch. Samples are numbered through the sources, one after the other."""

    def __init__(
        self,
        sources: Sequence[WeightedShards],
        lengths_of: Callable[[IntArray], IntArray],
        *,
        seed: int,
        row_tokens: int,
        window: int = DEFAULT_WINDOW,
        shuffle: bool = True,
        shuffle_shards: int | None = None,
    ) -> None:
        """`lengths_of` tells the positions of samples. Without `shuffle`, samples and rows keep their order."""
        self.sources, self.lengths_of = tuple(sources), lengths_of
        self.seed, self.row_tokens, self.window_samples = seed, row_tokens, window
        self.shuffle, self.shuffle_shards = shuffle, shuffle_shards
        self._offsets = [0, *itertools.accumulate(source.size for source in self.sources)]
        self.window = functools.lru_cache(maxsize=KEPT_WINDOWS)(self._window)

    def __len__(self) -> int:
        """Samples of all sources."""
        return self._offsets[-1]

    def num_windows(self, epoch: int) -> int:
        """Windows of an epoch: none when it has no samples."""
        spans = [source.span(epoch) for source in self.sources]
        return -(-sum(end - first for first, end in spans) // self.window_samples)

    def windows(self, epoch: int) -> Iterator[Window]:
        """All windows of an epoch, each planned when it is asked for."""
        return (self.window(epoch, number) for number in range(self.num_windows(epoch)))

    def num_rows(self, epoch: int) -> int:
        """Rows of an epoch, counted by planning all of its windows."""
        return sum(window.num_rows for window in self.windows(epoch))

    def _window(self, epoch: int, number: int) -> Window:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, epoch, number))))
        parts = [self._share(i, epoch, number) for i in range(len(self.sources))]
        samples = np.concatenate([np.zeros(0, np.int64), *parts])
        if self.shuffle:
            samples = rng.permutation(samples)
        lengths = self.lengths_of(samples)
        fits = lengths <= self.row_tokens
        kept = samples[fits]
        rows = pack_best_fit(lengths[fits], self.row_tokens)
        if self.shuffle:
            rows = [rows[i] for i in rng.permutation(len(rows))]
        return Window(
            samples=kept[np.array([i for row in rows for i in row], dtype=np.int64)],
            starts=np.cumsum([0, *map(len, rows)], dtype=np.int64),
            too_long=samples[~fits],
        )

    def _share(self, i: int, epoch: int, number: int) -> IntArray:
        """Sample numbers that source `i` gives to a window."""
        source, windows = self.sources[i], self.num_windows(epoch)
        first, end = source.span(epoch)
        places = range(first + number * (end - first) // windows, first + (number + 1) * (end - first) // windows)
        shares = []
        place = places.start
        while place < places.stop:
            turn, inside = divmod(place, source.size)
            stop = min(places.stop, (turn + 1) * source.size)
            positions = np.arange(inside, inside + stop - place, dtype=np.int64)
            if self.shuffle:
                key = key_of(self.seed, i, turn)
                positions = shuffled_shards(positions, source.starts, self.shuffle_shards, key)
            shares.append(positions + self._offsets[i])
            place = stop
        return np.concatenate([np.zeros(0, np.int64), *shares])


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


def key_of(*parts: int) -> int:
    """A key of 64 bits from whole numbers of 0 or more."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def permuted(positions: npt.NDArray[Any], size: int, key: int) -> IntArray:
    """Where the permutation of 0 .. size - 1 that `key` picks takes `positions`, int64 [n] to int64 [n].

    Every place of a random order is known by itself: nothing is stored, nothing is drawn in turn. It is a
    format-preserving cipher: a Feistel network over two digits of mixed radix (Black and Rogaway 2002), walked in
    cycles until it lands inside the range. All of its arithmetic is whole: equal on every machine.
    """
    values = np.array(positions, dtype=np.uint64).reshape(-1)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _network(values[outside], size, key)
        outside = values >= size
    return values.astype(np.int64)


def shuffled_shards(positions: IntArray, starts: IntArray, group: int | None, key: int) -> IntArray:
    """Samples at `positions` of a random order, of samples that stand in shards.

    `starts`, int64 [shards + 1], are the numbers of the first sample of each shard and of all. The shards are shuffled,
    and the samples within each `group` of consecutive ones; for None within all of them at once.
    """
    if group is None:
        return permuted(positions, int(starts[-1]), key)
    order, places = _shard_order(starts.tobytes(), key)
    blocks = np.append(places[:-1:group], places[-1])
    block = np.searchsorted(blocks, positions, side="right") - 1
    shuffled = np.empty_like(positions)
    for number in np.unique(block):
        first, end = int(blocks[number]), int(blocks[number + 1])
        inside = block == number
        shuffled[inside] = first + permuted(positions[inside] - first, end - first, key_of(key, int(number)))
    shard = np.searchsorted(places, shuffled, side="right") - 1
    return starts[order[shard]] + shuffled - places[shard]


@functools.lru_cache(maxsize=8)
def _shard_order(starts: bytes, key: int) -> tuple[IntArray, IntArray]:
    """The shards in random order [shards], and where each begins in it, then where the last ends [shards + 1]."""
    borders = np.frombuffer(starts, dtype=np.int64)
    sizes = np.diff(borders)
    order = permuted(np.arange(len(sizes)), len(sizes), key)
    return order, np.concatenate([[0], np.cumsum(sizes[order])])


def _network(values: npt.NDArray[np.uint64], size: int, key: int) -> npt.NDArray[np.uint64]:
    """One pass through the network: a permutation of a range a little larger than `size`."""
    left_radix = math.isqrt(size - 1) + 1
    right_radix = -(-size // left_radix)
    left, right = np.divmod(values, np.uint64(right_radix))
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    for i in range(0, ROUNDS, 2):
        left = (left + _mix(right ^ keys[i]) % np.uint64(left_radix)) % np.uint64(left_radix)
        right = (right + _mix(left ^ keys[i + 1]) % np.uint64(right_radix)) % np.uint64(right_radix)
    return left * np.uint64(right_radix) + right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
