"""The words of an answer to a question: what a model wrote between `[ta]` and `[ua]`, before it spoke.

The next-token vocabulary has tokens for the two marks, the multi-token vocabulary writes them as plain text. So words
that look like a mark stay words in the one; in the other they cannot be told from a mark.

It knows nothing of models, requests or codes. A model may write anything: every list of ids gives words.

Example:
    answer_words(output.text_ids, layout, tokenizer.decode)  # Words(text="In dover.", is_marked=True)
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from slmkit.data.prompt import MARKS
from slmkit.data.vocab import VocabLayout

_MARK = re.compile("(" + "|".join(re.escape(mark) for mark in MARKS) + ")")


class Words(NamedTuple):
    """`text` without surrounding white space. `is_marked`: `[ta]` stood before it and `[ua]` after."""

    text: str
    is_marked: bool


def answer_words(ids: Sequence[int], layout: VocabLayout, decode: Callable[[Sequence[int]], str]) -> Words:
    """The words from the first `[ta]` to the next `[ua]`, of the text ids of an answer; `decode` as the tokenizer's.

    Where a mark is missing the words begin, or end, with the answer.
    """
    parts = _parts(ids, layout, decode)
    marks = parts[1::2]
    has_begin = MARKS[0] in marks
    begin = marks.index(MARKS[0]) + 1 if has_begin else 0
    has_end = MARKS[1] in marks[begin:]
    end = marks.index(MARKS[1], begin) if has_end else len(marks)
    texts = (part.strip() for part in parts[2 * begin : 2 * end + 1 : 2])
    return Words(" ".join(text for text in texts if text), has_begin and has_end)


def _parts(ids: Sequence[int], layout: VocabLayout, decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Text, mark, text, mark, ..., text."""
    tokens = {token_id: token for token, token_id in layout.specials if token in MARKS}
    if not tokens:
        return _MARK.split(decode(ids))
    parts, first = [], 0
    for place, token_id in enumerate(ids):
        if token_id in tokens:
            parts += [decode(ids[first:place]), tokens[token_id]]
            first = place + 1
    return [*parts, decode(ids[first:])]
