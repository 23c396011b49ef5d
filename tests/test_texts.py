"""Texts of strangers: nothing of them is obeyed, what cannot be seen is empty, and counts have their nouns."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.texts import counted, excerpt, is_blank, visible

INVISIBLE = [
    "",
    " ",
    "\n\t\r",
    "\u200b",
    "\ufeff",
    "\u00ad",
    "\x00\x1b",
    "\ufe0f",
    "\U000e0101",
    "\u2060\u200d",
    "\u3164",
]


@given(st.text())
def test_what_is_shown_holds_no_character_that_is_obeyed(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert all(unicodedata.category(c) != "Cc" or c in "\n\t" for c in shown)
    assert not any(
        unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "PDI") for c in shown
    )
    assert visible(shown) == shown


def test_what_is_harmless_stays() -> None:
    assert visible("Zażółć\tgęślą\n🎉 שלום") == "Zażółć\tgęślą\n🎉 שלום"
    assert visible("\x1b[2J\r\x9b\u202e\ud800") == r"\x1b[2J\r\x9b\u202e\ud800"
    assert visible(7) == "7"


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
def test_what_cannot_be_seen_is_blank(text: str) -> None:
    assert is_blank(text)
    assert is_blank(text + "".join(INVISIBLE))
    assert not is_blank(text + "a")


@pytest.mark.parametrize("text", ["a", "?", "é", "́", "🎉", "שלום", "\ud800", "7"], ids=ascii)
def test_what_can_be_seen_is_not(text: str) -> None:
    assert not is_blank(text)


def test_an_excerpt_is_short_whatever_the_text() -> None:
    assert excerpt("x" * 10**6) == "x" * 59 + "…"
    assert excerpt("\x1b" * 9, 10) == r"\x1b\x1b\…"
    assert excerpt("short") == "short"


def test_counts_have_their_noun() -> None:
    assert [counted(n, "shard") for n in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
    assert [counted(n, "copy", "copies") for n in (1, 3)] == ["1 copy", "3 copies"]
