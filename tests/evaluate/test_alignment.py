"""Alignment of two sets of states: values by hand, a naive twin, and the laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.evaluate.alignment import SHRINKAGE, alignment, spd_distance

CROSS = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])


def states(seed, num, width=5):
    return np.random.default_rng(seed).standard_normal((num, width)) @ np.diag(np.arange(1.0, width + 1))


def spd(seed, width=4):
    factor = np.random.default_rng(seed).standard_normal((width, width))
    return factor @ factor.T + 0.1 * np.eye(width)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([[1, 0], [0, 1]], [[np.e, 0], [0, np.e**2]], np.sqrt(5)),
        ([[1, 0], [0, 1]], [[2, 1], [1, 2]], np.log(3)),  # eigenvalues 1 and 3
        # The roots of x^2 - 1.5 x + 0.375.
        ([[2, 0], [0, 1]], [[1, 0.5], [0.5, 1]], np.hypot(np.log(0.75 + 0.1875**0.5), np.log(0.75 - 0.1875**0.5))),
    ],
)
def test_distances_by_hand(a, b, expected):
    assert spd_distance(np.array(a, float), np.array(b, float)) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_laws_of_the_distance(seed):
    """A metric, and blind to one and the same change of coordinates on both sides."""
    a, b, c = spd(seed), spd(seed + 1), spd(seed + 2)
    change = np.random.default_rng(seed).standard_normal((4, 4)) + 3 * np.eye(4)
    assert spd_distance(a, a) == pytest.approx(0, abs=1e-7)
    assert spd_distance(a, b) == pytest.approx(spd_distance(b, a), rel=1e-6)
    assert spd_distance(a, b) == pytest.approx(spd_distance(change @ a @ change.T, change @ b @ change.T), rel=1e-6)
    assert spd_distance(a, b) == pytest.approx(spd_distance(np.linalg.inv(a), np.linalg.inv(b)), rel=1e-5)
    assert spd_distance(a, c) <= spd_distance(a, b) + spd_distance(b, c) + 1e-9


def test_not_positive_definite():
    with pytest.raises(ValueError, match="not positive definite"):
        spd_distance(np.diag([1.0, -1.0]), np.eye(2))


def test_values_by_hand():
    """Means (3, 4) and (4, 3); spreads of I / 2 and 2 I, which shrinkage leaves: every eigenvalue is 4."""
    found = alignment(CROSS + np.array([3, 4]), 2 * CROSS + np.array([4, 3]))
    assert found.cosine == pytest.approx(24 / 25)
    assert found.euclidean == pytest.approx(np.sqrt(2))
    assert found.riemannian == pytest.approx(np.sqrt(2) * np.log(4))


def test_shrinkage_by_hand():
    """Spread along one axis only: 0.9 * diag(1, 0) + 0.1 * 0.5 * I against diag(0, 1) likewise."""
    found = alignment(np.array([[1.0, 0], [-1, 0]]), np.array([[0, 1.0], [0, -1]]))
    assert found.riemannian == pytest.approx(np.sqrt(2) * np.log(0.95 / 0.05))
    assert found.cosine == 0


@pytest.mark.parametrize(("n", "m", "width"), [(3, 4, 40), (40, 60, 5), (10, 30, 24), (2, 2, 6)])
def test_naive_twin(n, m, width):
    """Full covariance matrices and general eigenvalues, however few positions there are."""
    x, y = states(1, n, width), states(2, m, width) + 1
    shrunk = []
    for rows in (x, y):
        covariance = np.cov(rows.T, bias=True)
        shrunk.append((1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / width * np.eye(width))
    ratios = np.linalg.eigvals(np.linalg.inv(shrunk[0]) @ shrunk[1]).real
    found = alignment(x, y)
    assert found.riemannian == pytest.approx(np.sqrt(np.sum(np.log(ratios) ** 2)), rel=1e-6)
    assert found.euclidean == pytest.approx(np.sqrt(np.sum((x.mean(0) - y.mean(0)) ** 2)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), num=st.integers(2, 12), scale=st.floats(0.01, 100))
def test_laws(seed, num, scale):
    x, y = states(seed, num), states(seed + 1, 7) + 0.5
    same, there, back = alignment(x, x), alignment(x, y), alignment(y, x)
    assert same == pytest.approx((1, 0, 0), abs=1e-7)
    assert there == pytest.approx(back, rel=1e-6)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 5)))
    turned = alignment(scale * x @ rotation, scale * y @ rotation)
    expected = (there.cosine, scale * there.euclidean, there.riemannian)
    assert turned == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("few", [np.ones((1, 5)), np.ones((3, 5))])
def test_without_spread_there_is_no_riemannian_distance(few):
    found = alignment(few, states(0, 9))
    assert found.riemannian is None
    assert np.isfinite(found.cosine + found.euclidean)


@pytest.mark.parametrize("other", [np.ones((0, 5)), np.ones((3, 4)), np.ones(5)])
def test_shapes_that_do_not_fit(other):
    for pair in ((states(0, 3), other), (other, states(0, 3))):
        with pytest.raises(ValueError, match=r"expected \[n, D\] and \[m, D\]"):
            alignment(*pair)
