"""Whether an answer is right: exact match and F1, as the evaluation script of TriviaQA (arXiv 1705.03551) defines them.

Both sides are lower-cased, punctuation and underscores become spaces, the articles a, an, the go, and white space
counts once. Of several true answers the one that scores best counts.

Invariant: an exact match of an answer that holds any word has F1 1.

Example:
    exact_match("The Beatles!", ["Beatles", "Fab Four"])    # True
    f1("John Lennon", ["John Winston Lennon"])              # 0.8: 2 of 2 words right, 2 of 3 words found
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = string.punctuation + "\u2018\u2019\u00b4"  # with curly quotes and the acute accent
_SPACED = str.maketrans(dict.fromkeys(PUNCTUATION, " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized_answer(text: str) -> str:
    """The words of `text` that count, with a space between them."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_SPACED)).split())


def exact_match(prediction: str, truths: Sequence[str]) -> bool:
    """Whether `prediction` is one of `truths`. Raises ValueError when there are none."""
    words = normalized_answer(prediction)
    return any(words == normalized_answer(truth) for truth in _some(truths))


def f1(prediction: str, truths: Sequence[str]) -> float:
    """Harmonic mean of the share of predicted words that are true and of true words that are predicted, 0 to 1.

    A word counts as often as it stands in both. Raises ValueError when there are no truths.
    """
    return max(_f1(normalized_answer(prediction).split(), normalized_answer(truth).split()) for truth in _some(truths))


def _f1(predicted: list[str], true: list[str]) -> float:
    shared = (Counter(predicted) & Counter(true)).total()
    return 2 * shared / (len(predicted) + len(true)) if shared else 0.0


def _some(truths: Sequence[str]) -> Sequence[str]:
    """`truths`, of which there must be one; a lone string would be taken for its letters."""
    if isinstance(truths, str) or not truths:
        raise ValueError(f"expected one or more true answers in a sequence, got {truths!r}")
    return truths
