"""Exact match and F1, worked out by hand from the definition in TriviaQA's evaluation script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.evaluate.metrics.answers import exact_match, f1, normalized_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Beatles!", "beatles"),
        ("  A  cat,\tan owl ", "cat owl"),
        ("rock_'n'_roll", "rock n roll"),
        ("King\u2019s \u2018Lear\u00b4`", "king s lear"),
        ("Anthem of a theatre", "anthem of theatre"),
        ("the-a-an", ""),
    ],
)
def test_normalization(text, expected):
    assert normalized_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "truths", "match", "score"),
    [
        ("The Beatles!", ["Beatles"], True, 1.0),
        ("beatles", ["Rolling Stones", "The Beatles"], True, 1.0),
        ("John Lennon", ["John Winston Lennon"], False, 0.8),  # precision 1, recall 2/3
        ("it was John Lennon", ["Lennon", "John Lennon"], False, 2 / 3),  # the second: precision 1/2, recall 1
        ("new new york", ["new york new york"], False, 6 / 7),  # 3 shared of 3 and 4: precision 1, recall 3/4
        ("Paris", ["London"], False, 0.0),
        ("", ["London"], False, 0.0),
    ],
)
def test_scores_by_hand(prediction, truths, match, score):
    assert exact_match(prediction, truths) is match
    assert f1(prediction, truths) == pytest.approx(score)


@given(text=st.text(max_size=30), other=st.text(max_size=30))
def test_laws(text, other):
    assert exact_match(text, [other, text])
    assert f1(text, [other, text]) == (1.0 if normalized_answer(text) else 0.0)
    assert 0 <= f1(text, [other]) == f1(other, [text]) <= 1


@pytest.mark.parametrize("truths", [[], "Paris"])
def test_truths_are_a_sequence_of_some(truths):
    for score in (exact_match, f1):
        with pytest.raises(ValueError, match="one or more true answers"):
            score("Paris", truths)
