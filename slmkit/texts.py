"""Texts of strangers, and words for people: what may be printed, what is empty, how many, and numbers as words.

A terminal obeys control characters, and text that is written from right to left can be made to reorder what stands
around it. So whatever comes from a file, a model or a client goes through `visible` before it is shown: the command
line and the log do it for all they print, the pages for every text of a stranger.

Example:
    visible("a\\x1b[2Jb")       # "a\\\\x1b[2Jb", with a backslash in place of the escape character
    is_blank("\\u200b\\ufeff")   # True: nothing of it can be seen
    counted(1, "shard")        # "1 shard"
"""

import math
import re

SHOWN_CHARS = 60  # of a text, in a message about it
# All control characters but tab and line break; what reorders text; halves of surrogate pairs, which UTF-8 cannot hold.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# White space and control characters, and what Unicode calls "default ignorable" or draws as a blank: soft hyphens, zero
# widths, byte order marks, variation selectors, fillers, tags.
_UNSEEN = re.compile(
    "[\\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]*"
)


def visible(text: object) -> str:
    """`text` with escapes such as `\\x1b` in place of what a terminal or a page would obey instead of show."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def is_blank(text: str) -> bool:
    """Whether nothing of `text` can be seen, nor said."""
    return _UNSEEN.fullmatch(text) is not None


def excerpt(text: object, limit: int = SHOWN_CHARS) -> str:
    """At most `limit` visible characters of a text of any length."""
    clean = visible(str(text)[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 shard", "2 shards"; `plural` where an s is not enough."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def positive(text: str) -> int:
    """A whole number from 1. argparse names the argument where ValueError is raised."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def natural(text: str) -> int:
    """A whole number from 0. argparse names the argument where ValueError is raised."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def share(text: str) -> float:
    """A number from 0 to 1. argparse names the argument where ValueError is raised."""
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def seed(text: str) -> int:
    """A whole number of 64 bits, as torch takes it. argparse names the argument where ValueError is raised."""
    number = int(text)
    if not -(2**63) <= number < 2**64:
        raise ValueError
    return number


def above_zero(text: str) -> float:
    """A number above 0. argparse names the argument where ValueError is raised."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number
