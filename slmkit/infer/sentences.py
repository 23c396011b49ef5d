"""The sentences of a text to be read, in order, with the pause after each.

A text is cut between paragraphs, then between sentences (by `sentencex`, which knows the full stops of all scripts and
the abbreviations of English), and a sentence that is too long for one answer between clauses, between words, or where
there are none anywhere. What says nothing by itself, such as marks or an emoji, stays with the sentence before it; the
number of a list with the one behind it.

Law: all that can be seen of a text is in its sentences, in order; what is left out is white space. Each sentence is the
only one of its own text, so that it is spoken in a text as it is spoken alone.

Example:
    split("Dr. Smith came. He had 3.5 hours.")
    # [Sentence("Dr. Smith came.", 0.3), Sentence("He had 3.5 hours.", 0.0)]
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import sentencex

PARAGRAPH_SEC, SENTENCE_SEC, CLAUSE_SEC = 0.6, 0.3, 0.15  # of silence, where one ends and another follows
# In UTF-8: some 30 s of English. No tokenizer of bytes makes more tokens of it, so that it fits any engine.
MAX_SENTENCE_BYTES = 500
_PARAGRAPH = re.compile(r"\n\s*\n")
_CLAUSE_END = re.compile(r"[,;:)\]»”،؛–—](?=\s)|[、，；：）」』।]|\s[-–—](?=\s)")  # noqa: RUF001
_LIST_NUMBER = re.compile(r"\W*\d+[.)]?\W*")
_SURROGATE = re.compile("[\ud800-\udfff]")
JOINERS = "\u200d\ufe0f"  # they bind an emoji to the next one, or to its form


class Sentence(NamedTuple):
    """What is spoken at once."""

    text: str
    pause_sec: float  # after it; 0 after the last, and where a sentence is cut between words


def split(text: str) -> list[Sentence]:
    """The sentences of a text; of one without anything to see, none. A text that is one sentence stays as it is,
    unless its white space makes it too long for one."""
    found: list[Sentence] = []
    for paragraph in _paragraphs(text):
        found += _settled(Sentence(paragraph, PARAGRAPH_SEC))
    if len(found) == 1 and _num_bytes(text) <= MAX_SENTENCE_BYTES:
        return [Sentence(text, 0.0)]
    return [*found[:-1], found[-1]._replace(pause_sec=0.0)] if found else []


def rewritten(sentences: Iterable[Sentence], write: Callable[[str], str]) -> list[Sentence]:
    """Other words in place of each sentence, which are cut again where they are too long."""
    found: list[Sentence] = []
    for sentence in sentences:
        found += split(write(sentence.text))
        found[-1:] = [last._replace(pause_sec=sentence.pause_sec) for last in found[-1:]]
    return found


def _paragraphs(text: str) -> list[str]:
    """Each as one line. One without words is a part of the one before, or behind, it."""
    lines: list[str] = []
    for line in (" ".join(paragraph.split()) for paragraph in _PARAGRAPH.split(text)):
        if lines and not (_has_words(line) and _has_words(lines[-1])):
            lines[-1] += f" {line}" if line else ""
        elif line:
            lines.append(line)
    return lines


def _settled(part: Sentence) -> Iterator[Sentence]:
    """Cut until no part is cut further: what is one sentence between others may be two by itself."""
    waiting = [part]
    while waiting:
        part = waiting.pop()
        texts = _sentences(part.text)
        if len(texts) > 1:
            cut = [Sentence(text, SENTENCE_SEC) for text in texts]
        elif _num_bytes(part.text) > MAX_SENTENCE_BYTES:
            cut = _parts(part.text)
        else:
            yield part
            continue
        cut[-1] = cut[-1]._replace(pause_sec=part.pause_sec)
        waiting += reversed(cut)


def _sentences(text: str) -> list[str]:
    """A line cut between its sentences; none of them is empty, and none says nothing beside one that says something."""
    sentences: list[str] = []
    begun = ""  # what belongs to the sentence behind it
    first = 0
    # It only says where to cut. UTF-8, which it reads, has no halves of surrogate pairs.
    for piece in sentencex.segment("en", _SURROGATE.sub("\ufffd", text)):
        piece, first = text[first : first + len(piece)], first + len(piece)
        has_words = _has_words(piece)
        if has_words and not _LIST_NUMBER.fullmatch(piece):
            sentences.append(begun + piece)
            begun = ""
        elif has_words or not sentences:
            begun += piece
        else:
            sentences[-1] += begun + piece
            begun = ""
    if begun and sentences:
        sentences[-1] += begun
    elif begun:
        sentences.append(begun)
    return [sentence.strip() for sentence in sentences]


def _parts(text: str) -> list[Sentence]:
    """A long line in parts of nearly one length, cut where clauses end, between words, or anywhere."""
    parts = []
    while (size := _num_bytes(text)) > MAX_SENTENCE_BYTES:
        wanted = size / -(-size // MAX_SENTENCE_BYTES)
        ends = list(
            itertools.takewhile(lambda end: end <= MAX_SENTENCE_BYTES, itertools.accumulate(map(_num_bytes, text)))
        )
        most = len(ends)  # characters that the first part may have; the text is longer

        def nearest(places: Iterable[int], ends: list[int] = ends, wanted: float = wanted) -> int | None:
            fitting = [place for place in places if 0 < place <= len(ends) and 2 * ends[place - 1] > wanted]
            return min(fitting, key=lambda place: abs(ends[place - 1] - wanted), default=None)

        within = text[: most + 1]
        clause = nearest(found.end() for found in _CLAUSE_END.finditer(within))
        word = nearest(found.start() for found in re.finditer(r"\s", within))
        anywhere = nearest(place for place in range(1, most + 1) if not _is_bound(text[place - 1], text[place]))
        place = clause or word or anywhere or most
        parts.append(Sentence(text[:place].strip(), CLAUSE_SEC if clause else 0.0))
        text = text[place:].strip()
    return [*parts, Sentence(text, 0.0)]


def _is_bound(before: str, letter: str) -> bool:
    """Whether two characters are drawn as one."""
    return letter in JOINERS or before == "\u200d" or unicodedata.category(letter).startswith("M")


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
