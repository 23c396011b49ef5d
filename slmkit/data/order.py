"""A random order of any size in which every place is known by itself: nothing is stored, nothing is drawn in turn.

`permuted` is a format-preserving cipher: a Feistel network over two digits of mixed radix (Black and Rogaway 2002),
walked in cycles until it lands inside the range. Its key picks the permutation.

It knows no samples, only numbers, and all of its arithmetic is whole: equal on every machine.

Invariant: for every size and key, `permuted(np.arange(size), size, key)` holds each of 0 .. size - 1 once.

Example:
    permuted(np.array([0, 1, 2]), size=10_000_000, key=key_of(seed, epoch))
"""

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
ROUNDS = 8  # of the network: an even number, half of them for each digit


def key_of(*parts: int) -> int:
    """A key of 64 bits from whole numbers of 0 or more."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def permuted(positions: npt.NDArray[Any], size: int, key: int) -> IntArray:
    """Where the permutation of 0 .. size - 1 that `key` picks takes `positions`, int64 [n] to int64 [n]."""
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
