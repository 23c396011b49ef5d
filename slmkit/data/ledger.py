"""The ledger: one line for every item of a source that gave no sample, with its reason.

Kept free of heavy imports, since decoding workers load it.

Invariant: items in = samples out + ledger lines.

Example:
    Failure.of("19_198", BadSample("empty", "a.wav holds no samples")).line()
    # b'{"detail": "a.wav holds no samples", "key": "19_198", "reason": "empty"}\\n'
"""

import json
from collections import Counter
from typing import NamedTuple

from slmkit.errors import BadSample

FAILURES_FILE = "failures.jsonl"
SHOWN_REASONS = 5


class Failure(NamedTuple):
    """An item that gave no sample. `reason` is a short stable word for counting, `detail` a sentence."""

    key: str
    reason: str
    detail: str

    @staticmethod
    def of(key: str, error: BadSample) -> "Failure":
        """The ledger line of a refused sample."""
        fields = [("got", error.got), ("expected", error.expected)]
        parts = [error.what, *(f"{name} {value}" for name, value in fields if value is not None)]
        return Failure(printable(key), error.reason, printable("; ".join(parts)))

    def line(self) -> bytes:
        """As JSON, with the newline."""
        values = {name: printable(text) for name, text in self._asdict().items()}
        return (json.dumps(values, sort_keys=True, ensure_ascii=False) + "\n").encode()


def most_common(reasons: Counter[str]) -> str:
    """The most frequent reasons with their counts, for people."""
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(SHOWN_REASONS))


def printable(text: str) -> str:
    """`text` with what UTF-8 cannot hold (file names in another encoding) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
