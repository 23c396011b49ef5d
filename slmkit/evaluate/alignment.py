"""How far text and speech lie apart inside a model: cosine, Euclidean and Riemannian distance of hidden states.

Only the names of the measures are taken from arXiv 2506.12537; its numbers need not be comparable. Here they are
 - cosine: of the mean text state and the mean speech state;
 - euclidean: the length of the difference of the two means;
 - riemannian: how differently the states spread around their means. With C the covariance of one set (divided by its
   number n), A = 0.9 C + 0.1 (trace C / D) I is positive definite for any n, and the distance of A and B is the
   affine-invariant one, sqrt(sum of log^2 of the eigenvalues of A^-1 B). The shrinkage is fixed, so that values of
   different utterances, layers and models can be compared; they do depend on the numbers of positions, so compare
   models on the same utterances. Where few positions meet a wide model the eigenvalues are taken in the space that the
   positions span; beyond it both matrices are multiples of I. All in float64.

Shapes: n text positions, m speech positions, D width.

Invariants: equal sets have cosine 1 and distances 0; swapping the sets changes nothing; rotating or scaling all states
alike leaves the Riemannian distance.

Example:
    for text_hidden, speech_hidden in hidden_pairs(model, tokenizer, sample):     # slmkit.evaluate.layers
        alignment(text_hidden, speech_hidden).riemannian
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slmkit.evaluate.voices import cosine

SHRINKAGE = 0.1  # share of the covariance that is spread evenly over all directions

Matrix = npt.NDArray[np.float64]


class Alignment(NamedTuple):
    """Of one pair of sets."""

    cosine: float
    euclidean: float
    riemannian: float | None  # None where a set does not spread: fewer than two positions, or all alike


def alignment(text_hidden: npt.NDArray[Any], speech_hidden: npt.NDArray[Any]) -> Alignment:
    """Measures of text states float [n, D] and speech states float [m, D].

    Raises ValueError when a set is empty or the widths differ.
    """
    text, speech = text_hidden.astype(np.float64), speech_hidden.astype(np.float64)
    if text.ndim != 2 or speech.ndim != 2 or not len(text) or not len(speech) or text.shape[1] != speech.shape[1]:
        raise ValueError(f"states of shapes {text.shape} and {speech.shape}, expected [n, D] and [m, D], n and m > 0")
    means = text.mean(axis=0), speech.mean(axis=0)
    return Alignment(
        cosine=cosine(*means),
        euclidean=float(np.linalg.norm(means[0] - means[1])),
        riemannian=_spread_distance(text - means[0], speech - means[1]),
    )


def spd_distance(a: Matrix, b: Matrix) -> float:
    """Affine-invariant Riemannian distance of symmetric positive definite matrices [D, D] (Pennec et al. 2006).

    Raises ValueError when the first is not positive definite.
    """
    try:
        lower = np.linalg.cholesky(a)
    except np.linalg.LinAlgError as error:
        raise ValueError("the matrix is not positive definite") from error
    whitened = np.linalg.solve(lower, np.linalg.solve(lower, b).T)
    return float(np.linalg.norm(np.log(np.linalg.eigvalsh((whitened + whitened.T) / 2))))


def _spread_distance(text: Matrix, speech: Matrix) -> float | None:
    """Distance of the shrunk covariances of centred states [n, D] and [m, D]."""
    width = text.shape[1]
    levels = [float(np.square(states).sum() / len(states) / width) for states in (text, speech)]
    if not all(levels):
        return None
    num_beyond = max(0, width - len(text) - len(speech))
    if num_beyond:
        basis, _ = np.linalg.qr(np.concatenate([text, speech]).T)
        text, speech = text @ basis, speech @ basis
    inside = spd_distance(*(_shrunk(states, level) for states, level in zip((text, speech), levels, strict=True)))
    return float(np.hypot(inside, np.sqrt(num_beyond) * np.log(levels[1] / levels[0])))


def _shrunk(states: Matrix, level: float) -> Matrix:
    """Covariance of centred `states`, whose mean variance is `level`, drawn towards `level` times I."""
    covariance = states.T @ states / len(states)
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * level * np.eye(states.shape[1])
