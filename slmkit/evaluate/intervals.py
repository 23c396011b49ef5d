"""How sure a score is: bootstrap intervals over utterances.

A score of an utterance is an amount and a weight: (1, 1) for one that ended by itself, (3, 12) for three errors in
twelve words. The score of many is the sum of amounts divided by the sum of weights: a mean where every weight is 1, the
error rate of all words where the weights are words. The interval holds the middle 95 % of the scores of as many
utterances drawn again, with replacement (Efron and Tibshirani 1993, the percentile interval).

Pure: equal scores and seed give equal intervals.

Example:
    bootstrap([(3, 12), (0, 8)])      # Interval(mean=0.15, low=0.0, high=0.25)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
SHARE = 0.95

Score = tuple[float, float]  # amount, weight
Table = npt.NDArray[np.float64]  # [n, 2]


class Interval(NamedTuple):
    """The score of all utterances, and between which values 95 % of the resampled ones lie."""

    mean: float
    low: float
    high: float


def bootstrap(scores: Sequence[Score], *, seed: int = 0) -> Interval | None:
    """The score of all with its interval; None where the weights sum to nothing."""
    table = np.array(scores, dtype=np.float64).reshape(-1, 2)
    return _interval(lambda chosen: _ratio(table[chosen]), len(table), seed)


def difference(first: Sequence[Score], second: Sequence[Score], *, seed: int = 0) -> Interval | None:
    """How much more the second is than the first; utterance i of both is drawn together, as they are of one sentence.

    Raises ValueError when the two are not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} scores against {len(second)}")
    a, b = (np.array(scores, dtype=np.float64).reshape(-1, 2) for scores in (first, second))
    return _interval(lambda chosen: _ratio(b[chosen]) - _ratio(a[chosen]), len(a), seed)


def _interval(score: Callable[[npt.NDArray[np.int64]], float], count: int, seed: int) -> Interval | None:
    mean = score(np.arange(count))
    if np.isnan(mean):
        return None
    rng = np.random.default_rng(seed)
    drawn = np.array([score(rng.integers(0, count, count)) for _ in range(RESAMPLES)])
    low, high = np.nanpercentile(drawn, [50 * (1 - SHARE), 50 * (1 + SHARE)])
    return Interval(float(mean), float(low), float(high))


def _ratio(table: Table) -> float:
    amount, weight = table.sum(axis=0)
    return float(amount / weight) if weight else float("nan")
