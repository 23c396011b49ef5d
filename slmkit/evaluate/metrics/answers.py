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

from slmkit.evaluate.metrics import Metric, Scores, measures, single
from slmkit.evaluate.spoken import Spoken

PUNCTUATION = string.punctuation + "\u2018\u2019\u00b4"  # with curly quotes and the acute accent
_SPACED = str.maketrans(dict.fromkeys(PUNCTUATION, " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _metric(name: str, label: str, order: int, note: str) -> Metric:
    return Metric(name=name, label=label, order=order, note=note, unit="%", better="higher", digits=1)


@measures(
    _metric("exact_match", "EM", 30, "Exact match: the text answer is a true one, as TriviaQA compares them."),
    _metric("f1", "F1", 31, "Words that the text answer shares with the nearest true one."),
)
def text_answer(spoken: Spoken) -> Scores:
    return _answer_scores("", spoken, spoken.record.answer)


@measures(
    _metric("speech_exact_match", "EM speech", 32, "EM of what the recognizer heard; no speech: 0."),
    _metric("speech_f1", "F1 speech", 33, "F1 of what the recognizer heard; no speech: 0."),
    needs=["recognizer"],
)
def spoken_answer(spoken: Spoken) -> Scores:
    return _answer_scores("speech_", spoken, spoken.heard)


def _answer_scores(kind: str, spoken: Spoken, answer: str) -> Scores:
    """None where the corpus has no true answer; nothing where nothing was asked."""
    if not spoken.record.question:
        return {}
    truths = spoken.record.true_answers
    found = (exact_match(answer, truths), f1(answer, truths)) if truths else (None, None)
    return {f"{kind}exact_match": single(found[0]), f"{kind}f1": single(found[1])}


def normalized_answer(text: str) -> str:
    """The words of `text` that count, with a space between them."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_SPACED)).split())


def exact_match(prediction: str, truths: Sequence[str]) -> bool:
    """Whether `prediction` is one of `truths`. Raises ValueError when there are none."""
    _check_truths(truths)
    return normalized_answer(prediction) in map(normalized_answer, truths)


def f1(prediction: str, truths: Sequence[str]) -> float:
    """Harmonic mean of the share of predicted words that are true and of true words that are predicted, 0 to 1.

    A word counts as often as it stands in both. Raises ValueError when there are no truths.
    """
    _check_truths(truths)
    predicted, best = normalized_answer(prediction).split(), 0.0
    for truth in truths:
        true = normalized_answer(truth).split()
        if shared := (Counter(predicted) & Counter(true)).total():
            best = max(best, 2 * shared / (len(predicted) + len(true)))
    return best


def _check_truths(truths: Sequence[str]) -> None:
    if isinstance(truths, str) or not truths:  # a lone string would be taken for its letters
        raise ValueError(f"expected one or more true answers in a sequence, got {truths!r}")
