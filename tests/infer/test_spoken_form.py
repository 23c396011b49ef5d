"""Numbers, dates and abbreviations in words."""

import importlib.util

import pytest

from slmkit.errors import UserError
from slmkit.infer.sentences import SENTENCE_SEC, rewritten, split
from slmkit.infer.spoken_form import spoken_form

TABLE = {
    "Dr. Smith paid $3.50 on May 3, 2020.": "Doctor Smith paid three dollars and fifty cents on "
    "May third, twenty twenty.",
    "Mr. and Mrs. Jones live in Elm St. They like it.": "Mister and Misses Jones live in Elm Street. They like it.",
    "See no. 7, e.g. p. 5 etc. Then go.": "See number seven, for example page five et cetera. Then go.",
    "In the 1990s, St. John came. In 1984, 25 did.": "In the nineteen nineties, Saint John came. "
    "In nineteen eighty-four, twenty-five did.",
    "On the 21st of May at 5 p.m. He left.": "On the twenty-first of May at five p m. He left.",
    "on 5 Sept 2001, Jan. 5": "on the fifth of September two thousand and one, January fifth",
    "10 km vs. 1,000,000; 3.14; 007": "ten kilometers versus one million; three point one four; zero zero seven",
    "I said no. Take 1/2": "I said no. Take 1/2",  # it could be a date
    "plain words “stay” … 🎉": "plain words “stay” … 🎉",
    "\ud800 5": "\ud800 five",
}


@pytest.mark.parametrize("text", TABLE)
def test_words(text: str) -> None:
    assert spoken_form(text) == TABLE[text]
    assert spoken_form(text, "") == text


def test_sentences_end_where_they_did() -> None:
    text = "He came at 5 p.m. Then Dr. A. left, etc. It cost $1.50. Why?"
    found = rewritten(split(text), spoken_form)
    assert [sentence.text for sentence in found[:3]] == [
        "He came at five p m.",
        "Then Doctor A. left, et cetera.",
        "It cost one dollar and fifty cents.",
    ]
    assert [sentence.pause_sec for sentence in found] == [SENTENCE_SEC] * 3 + [0.0]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no such language to write numbers in\n.*latin"):
        spoken_form("5", "latin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need the package voxnorm\n.*pip install 'slmkit\[text\]'"):
        spoken_form("5", "english")
    assert spoken_form("5", "") == "5"
