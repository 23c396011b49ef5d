"""Utterances of a corpus that look wrong: clipped, silent, with a text that does not fit their length.

Outliers stay in the corpus: they are listed for a person to listen to. Each check has limits of its own. Characters per
second depend on language and style, so besides wide fixed limits they have some that the corpus sets itself: its median
and `DEVIATIONS` times its robust deviation (1.4826 times the median distance from the median, as for a normal
distribution).

It reads the checks in the indexes, one shard at a time, opens no tar, and knows nothing of how a check is measured. A
check it has no limits for is left alone, and so is an utterance that lacks a check.

Invariant: which utterances are listed does not depend on how the corpus is cut into shards. Memory grows by four bytes
and a compressed key for an utterance, about twelve bytes for an outlier.

Example:
    search = OutlierSearch()
    for index in corpus.shards:
        search.add(index)
    lines = [outlier.line() for outlier in search.outliers()]
"""

import json
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from slmkit.data.index import ShardIndex

RATIO = "chars_per_sec"
LIMITS = {  # check -> least and greatest value of a sound utterance
    "clipped": (0.0, 0.01),  # share of samples
    "silence": (0.0, 0.6),  # share of 20 ms frames
    "dc": (-0.01, 0.01),  # of full scale
    "frames_off": (-2.0, 2.0),
    "seconds_off": (-0.5, 0.5),
    RATIO: (1.0, 40.0),  # slow Chinese to fast English, with room
}
DEVIATIONS = 6.0
NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
LEAST_DEVIATION = 0.05  # of the median: so that a corpus of equal utterances does not refuse its neighbours
COMPRESSION = 1  # the fastest: keys are much alike
DIGITS = 4  # of a limit that the corpus sets


class Outlier(NamedTuple):
    """An utterance and the limit it does not keep."""

    key: str
    check: str
    value: float
    limit: float

    def line(self) -> bytes:
        """As JSON, with the newline."""
        return (json.dumps(self._asdict(), sort_keys=True, ensure_ascii=False) + "\n").encode()


class _Shard(NamedTuple):
    """What is kept of a shard until the corpus's own limits are known."""

    keys: bytes  # JSON, compressed
    outside: dict[str, tuple[np.ndarray, np.ndarray]]  # check -> rows uint32 and values float32 beyond a fixed limit
    ratios: np.ndarray  # float32 [n], or [0] where the shard has none


class OutlierSearch:
    """Takes the shards of a corpus in order, then lists its outliers."""

    def __init__(self) -> None:
        self._shards: list[_Shard] = []

    def add(self, index: ShardIndex) -> None:
        """Look at one shard."""
        outside = {name: found for name in LIMITS if name != RATIO and len((found := _outside(index, name))[0])}
        ratios = index.checks.get(RATIO, np.zeros(0, np.float32))
        if outside or len(ratios):
            keys = zlib.compress(json.dumps(index.keys).encode(), COMPRESSION)
            self._shards.append(_Shard(keys, outside, ratios))

    def outliers(self) -> Iterator[Outlier]:
        """In the order of the corpus, for each utterance by the name of the check."""
        low, high = ratio_limits(np.concatenate([np.zeros(0, np.float32), *(shard.ratios for shard in self._shards)]))
        for shard in self._shards:
            rows = np.flatnonzero((shard.ratios < low) | (shard.ratios > high))
            outside = {**shard.outside, RATIO: (rows, shard.ratios[rows])}
            if not len(rows) and not shard.outside:
                continue
            keys = json.loads(zlib.decompress(shard.keys))
            limits = {**LIMITS, RATIO: (low, high)}
            found = [
                (row, name, float(str(value)))  # through its shortest form: 0.1, not 0.10000000149
                for name, (rows, values) in outside.items()
                for row, value in zip(rows.tolist(), values, strict=True)
            ]
            for row, name, value in sorted(found):
                low_limit, high_limit = limits[name]
                yield Outlier(keys[row], name, value, low_limit if value < low_limit else high_limit)


def ratio_limits(ratios: np.ndarray) -> tuple[float, float]:
    """Least and greatest characters per second of a sound utterance, given those of all, float [N]; NaN is unknown."""
    low, high = LIMITS[RATIO]
    known = ratios[~np.isnan(ratios)]
    if len(known) == 0:
        return low, high
    median = float(np.median(known))
    deviation = max(NORMAL * float(np.median(np.abs(known - median))), LEAST_DEVIATION * median)
    own_low, own_high = (float(f"{median + side * DEVIATIONS * deviation:.{DIGITS}g}") for side in (-1, 1))
    return max(low, own_low), min(high, own_high)


def _outside(index: ShardIndex, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows uint32 and values float32 of what lies beyond the fixed limits of a check."""
    values = index.checks.get(name, np.zeros(0, np.float32))
    low, high = np.array(LIMITS[name], dtype=np.float32)  # so that 0.01 itself is not beyond 0.01
    rows = np.flatnonzero((values < low) | (values > high))
    return rows.astype(np.uint32), values[rows]
