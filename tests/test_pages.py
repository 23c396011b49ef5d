"""Pages from templates: escaping is always on, what is missing is an error, texts are made harmless."""

import re

import jinja2
import pytest

from slmkit import pages

HOSTILE = '"><script>alert(1)</script>\u202e\x00\x1b[31m\ud800'
VALUES = {"title": HOSTILE, "corpus": HOSTILE, "verdict": "", "facts": [(HOSTILE, HOSTILE)], "problems": []}


def test_text_of_strangers_is_escaped_isolated_and_clean() -> None:
    page = pages.render("verify.html", **VALUES, copies=[])
    page.encode()  # a lone surrogate would refuse
    assert "<script" not in page
    clean = r"&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;\u202e\x00\x1b[31m\ud800"
    assert page.count(f"<bdi>{clean}</bdi>") == 3
    assert page == pages.render("verify.html", **VALUES, copies=[])


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'copies' is undefined"):
        pages.render("verify.html", **VALUES)


def test_long_texts_are_shortened() -> None:
    assert pages.shorten("word" * 3, 10) == "wordwordw…"
    assert pages.shorten("word\nword", 9) == "word\nword"


def test_whatever_a_template_prints_is_visible() -> None:
    template = pages._jinja().from_string("{{ name }} {{ name | upper }} {{ 1.5 }}")
    assert template.render(name="a\u2066\x9b<") == r"a\u2066\x9b&lt; A\u2066\x9b&lt; 1.5"


@pytest.mark.parametrize("template", sorted(path.name for path in pages.TEMPLATE_FOLDER.glob("*.html")))
def test_no_template_loads_anything_from_elsewhere_or_turns_escaping_off(template: str) -> None:
    source = (pages.TEMPLATE_FOLDER / template).read_text()
    assert not re.search(r"https?:|<script|\| *safe|autoescape", source)
