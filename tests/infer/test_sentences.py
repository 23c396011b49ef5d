"""Texts of every kind become sentences: nothing is lost, and each is one sentence by itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.infer.sentences import CLAUSE_SEC, MAX_SENTENCE_BYTES, PARAGRAPH_SEC, SENTENCE_SEC, split

TABLE = [
    ("One word", ["One word"]),
    (" Hello\nthere. ", [" Hello\nthere. "]),  # one sentence stays as it is
    (f"Hello{3000 * ' '}there{3000 * chr(10)}\n", ["Hello there"]),  # but where it is too long for one
    ("Dr. Smith paid $3.50. Mr. A. B. Jones left at 5 p.m. on no. 7.", 2),
    ("It was 3.14 or 1.000.000. See http://a.b/c.d?e=f. Go.", 3),
    ("Wait... what?! No!! Yes.", ["Wait... what?!", "No!!", "Yes."]),
    ("!!! ... ?", ["!!! ... ?"]),
    ("Yes. 🎉! !!! Go 🎉.", ["Yes. 🎉! !!!", "Go 🎉."]),
    ("... so it began. “Come.” “Go!”", ["... so it began.", "“Come.”", "“Go!”"]),
    ('He said: "I am here. You are there." Then he left.', ['He said: "I am here. You are there."', "Then he left."]),
    ("1. First item. 2. Second item.", ["1. First item.", "2. Second item."]),
    ("今天很好。去吧！「好吗？」", ["今天很好。", "去吧！", "「好吗？」"]),  # noqa: RUF001
    ("كيف حالك؟ أنا بخير. شكرا", ["كيف حالك؟", "أنا بخير.", "شكرا"]),
    ("यह एक है। यह दो है।", ["यह एक है।", "यह दो है।"]),
    ("Привет. ¿Qué? Mixed 中文。And ठीक है। done", ["Привет.", "¿Qué?", "Mixed 中文。", "And ठीक है।", "done"]),
    ("Line one\ngoes on.\n \n***\n\nNext", ["Line one goes on. ***", "Next"]),
    ("\ud800 half. Pair.", ["\ud800 half.", "Pair."]),
    ("", []),
    (" \n\n ", []),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_splits(text: str, expected: list[str] | int) -> None:
    found = [sentence.text for sentence in split(text)]
    assert (len(found) if isinstance(expected, int) else found) == expected


def check(text: str) -> int:
    """Of the sentences of any text."""
    sentences = split(text)
    assert "".join("".join(sentence.text for sentence in sentences).split()) == "".join(text.split())
    for sentence in sentences if len(sentences) > 1 else []:
        assert len(sentence.text.encode("utf-8", "surrogatepass")) <= MAX_SENTENCE_BYTES
        assert [own.text for own in split(sentence.text)] == [sentence.text]
    assert not sentences or sentences[-1].pause_sec == 0
    return len(sentences)


PARTS = ["a", "B", "Dr.", "Mr. ", "1", "2.", " ", "\n", "\n\n", ".", "!", "?", "...", "“", "”", '"', "'", "(", ")"]
PARTS += [
    "。",
    "「",
    "」",
    "中",
    "ठी",
    "।",
    "؟",
    "🎉",
    ",",
    ";",
    "—",
    "e.g.",
    " U.S. ",
    "\ud800",
    "\u200d",
    "No. ",
    "word " * 60,
]


@given(st.lists(st.sampled_from(PARTS), max_size=60))
def test_law_nothing_is_lost_and_each_is_a_sentence_alone(parts: list[str]) -> None:
    check("".join(parts))


@pytest.mark.parametrize(
    "part", ["x", ".", "word ", "中", "🎉", "👨\u200d👩\u200d👧", "e\u0301", "1. ", "!? ", '"', "U.S."]
)
def test_ten_thousand_characters_of_anything(part: str) -> None:
    text = part * (10_000 // len(part))
    assert check(text) >= len(text.encode()) / MAX_SENTENCE_BYTES
    assert not any(sentence.text[0] in "\u200d\u0301" for sentence in split(text))


def test_pauses_are_those_of_the_punctuation() -> None:
    long = "The small boat crossed the lake, " * 30
    text = f"It rained. Nobody came.\n\n{long}"
    pauses = [sentence.pause_sec for sentence in split(text)]
    assert pauses == [SENTENCE_SEC, PARAGRAPH_SEC, CLAUSE_SEC, 0.0]
    assert all(sentence.text.endswith("lake,") for sentence in split(text)[2:])
    words = split("word " * 200)
    assert [sentence.pause_sec for sentence in words] == [0.0, 0.0]
    assert len(words[0].text) == pytest.approx(len(words[1].text), abs=5)
