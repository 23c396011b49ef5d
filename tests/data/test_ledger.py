"""Ledger lines can always be written, whatever bytes a file name holds."""

import json
import os

from slmkit.data.ledger import Failure, printable
from slmkit.errors import BadSample


def test_a_refused_sample_becomes_a_line_with_what_was_found():
    failure = Failure.of("a", BadSample("too_long", "a.wav is too long", got="9 s", expected="at most 5 s"))
    assert failure == Failure("a", "too_long", "a.wav is too long; got 9 s; expected at most 5 s")
    assert json.loads(failure.line()) == {
        "key": "a",
        "reason": "too_long",
        "detail": "a.wav is too long; got 9 s; expected at most 5 s",
    }


def test_names_that_are_not_unicode_are_escaped():
    name = os.fsdecode(b"caf\xe9")
    assert printable(name) == "caf\\udce9"
    assert json.loads(Failure.of(name, BadSample("missing", name)).line())["key"] == "caf\\udce9"
    assert printable("café") == "café"
