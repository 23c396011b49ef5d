"""Tables of the commands, and messages that no terminal obeys."""

import io
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.log import COLUMNS, StderrHandler, VisibleFormatter, table

WORDS = st.text(alphabet="abcdefgh", min_size=1, max_size=20)


@given(st.lists(st.tuples(st.sampled_from(["", "run", "checkpoints"]), st.lists(WORDS, max_size=40)), min_size=1))
def test_a_table_fits_80_columns_and_loses_no_word(rows: list[tuple[str, list[str]]]) -> None:
    lines = table([(name, " ".join(words)) for name, words in rows])
    assert max(map(len, lines)) <= COLUMNS
    assert " ".join(lines).split() == [word for name, words in rows for word in [*name.split(), *words]]


def test_a_word_that_is_too_long_stays_whole() -> None:
    """Paths can be copied."""
    assert table([("run", "in " + 90 * "x"), ("", "")]) == ["run  in", "     " + 90 * "x", ""]


def test_a_message_is_shown_and_not_obeyed() -> None:
    record = logging.makeLogRecord({"msg": "skipped %s", "args": ("a\x1b]0;title\x07\x9b2J\u202e",)})
    assert VisibleFormatter("%(message)s").format(record) == r"skipped a\x1b]0;title\x07\x9b2J\u202e"


def test_messages_go_to_what_standard_error_is_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", before)
    handler = StderrHandler()
    before.close()
    monkeypatch.setattr(sys, "stderr", now)
    handler.handle(logging.makeLogRecord({"msg": "saved"}))
    assert now.getvalue() == "saved\n"
