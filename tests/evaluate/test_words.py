"""Error rates: counted by hand, and the normalizer against the values Whisper's own tests publish."""

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.errors import UserError
from slmkit.evaluate.metrics.words import error_counts, normalized


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Let's", "let us"),
        ("he's like", "he is like"),
        ("she's been like", "she has been like"),
        ("10km", "10 km"),
        ("RC232", "rc 232"),
        ("Mr. Park visited Assoc. Prof. Kim Jr.", "mister park visited associate professor kim junior"),
        ("nineteen ninety nine", "1999"),
        ("two and a half million", "2500000"),
        ("$20 million", "$20000000"),
        ("[laughs] Um, hello (there) world.", "hello world"),
    ],
)
def test_normalizer_reference_values(text, expected):
    """tests/test_normalizer.py of openai/whisper, and the removals of arXiv 2212.04356, appendix C."""
    assert normalized(text) == expected


def test_spellings_are_mapped_where_they_are_known():
    assert normalized("The colour of honour.") == "the colour of honour"
    assert normalized("The colour of honour.", {"colour": "color", "honour": "honor"}) == "the color of honor"


def test_any_text_is_normalized():
    """Long ones in little time, and numbers that the published normalizer fails on."""
    assert normalized("It's twenty one. " * 1000).split() == ["it", "is", "21"] * 1000
    assert normalized("9" * 4100 + " it's").split() == ["9" * 4000, "9" * 100, "it", "is"]
    began = time.process_time()
    assert normalized("(" * 20_000) == ""
    assert time.process_time() - began < 10  # 12 s as one piece


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat on the mat", "well the cat sit on mat", (1, 1, 1, 6)),
        ("one two three", "one two three", (0, 0, 0, 3)),
        ("one two three", "", (0, 3, 0, 3)),
        ("hello", "well hello there world", (0, 0, 3, 1)),
        ("", "noise", (0, 0, 1, 0)),
        ("", "", (0, 0, 0, 0)),
    ],
)
def test_words_counted_by_hand(reference, hypothesis, expected):
    assert error_counts(reference, hypothesis) == expected


def test_characters_counted_by_hand():
    """kitten -> sitting: two letters changed, one added. A lost space is a deletion."""
    assert error_counts("kitten", "sitting", "char") == (2, 0, 1, 6)
    assert error_counts("ice cream", "icecream", "char") == (0, 1, 0, 9)


@given(a=st.lists(st.sampled_from("abc"), max_size=7), b=st.lists(st.sampled_from("abc"), max_size=7))
def test_naive_twin(a, b):
    """The edit distance by its definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    found = error_counts(" ".join(a), " ".join(b))
    assert sum(found[:3]) == row[-1]
    assert found.reference == len(a)
    assert found.insertions - found.deletions == len(b) - len(a)


def test_without_jiwer(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UserError, match=r"(?s)word error rates need the package jiwer.*slmkit\[eval\]"):
        error_counts("a", "b")
