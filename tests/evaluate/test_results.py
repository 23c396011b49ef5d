"""Bootstrap intervals against all resamples that there are, counted out by hand."""

import itertools

import numpy as np
import pytest

from slmkit.evaluate.results import bootstrap, difference


def test_two_utterances_have_three_resampled_means() -> None:
    """0, 0.5, 0.5, 1: the middle 95 % reaches from one end to the other."""
    assert bootstrap([(0, 1), (1, 1)]) == (0.5, 0.0, 1.0)


def test_equal_scores_leave_no_doubt() -> None:
    assert bootstrap([(3, 4)] * 7) == (0.75, 0.75, 0.75)


def test_weights_are_summed_before_they_divide() -> None:
    found = bootstrap([(3, 12), (0, 8)])
    assert found is not None
    assert found.mean == 3 / 20
    assert (found.low, found.high) == (0.0, 0.25)


def test_intervals_are_those_of_all_resamples() -> None:
    """Six utterances give 6^6 resamples, so that the percentiles can be counted out."""
    scores = [(1, 3), (0, 5), (2, 4), (4, 4), (0, 1), (3, 10)]
    ratios = [
        sum(amount for amount, _ in drawn) / sum(weight for _, weight in drawn)
        for drawn in itertools.product(scores, repeat=len(scores))
    ]
    found = bootstrap(scores)
    assert found is not None
    assert found.mean == pytest.approx(10 / 27)
    low, high = np.percentile(ratios, [2.5, 97.5])
    # The deviation of a percentile of 1000 draws; the fixed seed makes this one draw.
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)
    assert found.low < found.mean < found.high


def test_nothing_has_no_interval() -> None:
    assert bootstrap([]) is None
    assert bootstrap([(1, 0), (2, 0)]) is None


def test_resamples_without_weight_take_the_mean() -> None:
    """Of (1, 0) and (2, 4): a quarter of the resamples has no weight, the others are 2/4 or 3/4."""
    assert bootstrap([(1, 0), (2, 4)]) == (0.75, 0.5, 0.75)


def test_one_score_is_its_own_interval() -> None:
    assert bootstrap([(3, 4)]) == (0.75, 0.75, 0.75)
    assert difference([(1, 4)], [(2, 4)]) == (0.25, 0.25, 0.25)


def test_equal_scores_give_equal_intervals() -> None:
    scores = [(float(amount), 1.0) for amount in np.random.default_rng(0).standard_normal(40)]
    assert bootstrap(scores) == bootstrap(scores)


def test_pairs_are_drawn_together() -> None:
    """Each second score is 0.1 above its first: of that there is no doubt, however far the scores are spread."""
    first = [(float(i), 1.0) for i in range(10)]
    second = [(amount + 0.125, weight) for amount, weight in first]
    found = difference(first, second)
    assert found is not None
    assert found == pytest.approx((0.125, 0.125, 0.125))
    with pytest.raises(ValueError, match="10 scores against 9"):
        difference(first, second[1:])
