"""Long recordings with time stamps, grouped into excerpts that a model can take.

Consecutive segments go into one excerpt as long as it lasts at most `max_sec`. An excerpt begins and ends where a
segment does; around it lies silence up to the neighbouring segments, of which at most `SLACK_SEC` is its own, and never
so much that the excerpt could become longer than `max_sec`.

A segment that cannot be used ends the excerpt before it: inside, it would be words without a text.

Invariant: every segment is in one excerpt or is one failure, in order.

Example:
    excerpts([{"start": 0, "end": 4, "text": "One."}, {"start": 5, "end": 9, "text": "Two."}], max_sec=30.0)
    # [Excerpt(Cut(0.0, 9.0, 0.0, 9.5), "One. Two.")]
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from slmkit.corpora.base import LONGEST_SEC, Cut, one_line
from slmkit.errors import BadSample

SLACK_SEC = 0.5  # of the silence before and after, which an excerpt may have
ROUNDING_SEC = 0.01  # by which time stamps may overlap: they are rounded


class Excerpt(NamedTuple):
    """Where it lies in the recording, and what is said."""

    cut: Cut
    text: str


class _Segment(NamedTuple):
    """A segment, with what is wrong with it. Times are NaN where they are not known."""

    start_sec: float
    end_sec: float
    text: str
    spoken_sec: float  # where the latest of the segments before it ends
    error: BadSample | None = None


def excerpts(segments: Sequence[Any], max_sec: float, seconds: float | None = None) -> Iterator[Excerpt | BadSample]:
    """The excerpts of a recording that lasts `seconds`, as far as that is known.

    Gives BadSample "malformed", "bad_times", "unsorted", "overlap", "empty_transcript" or "too_long" for each segment
    that cannot be used.
    """
    checked = list(_check_all(segments, max_sec))
    first = 0
    while first < len(checked):
        last = first
        error = checked[first].error
        if error is not None:
            yield error
        else:
            while last + 1 < len(checked) and _fits(checked[last + 1], checked[first].start_sec, max_sec):
                last += 1
            yield _excerpt(checked, first, last, max_sec, math.inf if seconds is None else seconds)
        first = last + 1


def _fits(segment: _Segment, start_sec: float, max_sec: float) -> bool:
    return segment.error is None and segment.end_sec - start_sec <= max_sec


def _excerpt(checked: Sequence[_Segment], first: int, last: int, max_sec: float, seconds: float) -> Excerpt:
    start, end = checked[first].start_sec, checked[last].end_sec
    slack = min(SLACK_SEC, max(0.0, (max_sec - (end - start)) / 2))
    before = after = math.nan  # where the neighbours speak: NaN when nobody knows, then there is no slack
    if first == 0 or not math.isnan(checked[first - 1].end_sec):
        before = checked[first].spoken_sec
    if last + 1 == len(checked):
        after = seconds
    elif not math.isnan(checked[last + 1].start_sec):
        after = checked[last + 1].start_sec
    earliest = start if math.isnan(before) else min(start, max(before, start - slack))
    latest = end if math.isnan(after) else max(end, min(after, end + slack))
    return Excerpt(Cut(start, end, earliest, latest), " ".join(segment.text for segment in checked[first : last + 1]))


def _check_all(segments: Sequence[Any], max_sec: float) -> Iterator[_Segment]:
    started = spoken = 0.0
    for values in segments:
        segment = _check(values, started, spoken, max_sec)
        yield segment
        if not math.isnan(segment.end_sec):
            started, spoken = max(started, segment.start_sec), max(spoken, segment.end_sec)


def _check(values: Any, started_sec: float, spoken_sec: float, max_sec: float) -> _Segment:
    """One segment, after others of which the latest begins at `started_sec` and the latest to end ends at
    `spoken_sec`."""
    found = values if isinstance(values, dict) else {}
    start, end, text = _number(found.get("start")), _number(found.get("end")), found.get("text")
    unknown = _Segment(math.nan, math.nan, "", spoken_sec)
    if start is None or end is None or not isinstance(text, str):
        what = "a segment is not an object with numbers `start` and `end` and a string `text`"
        return unknown._replace(error=BadSample("malformed", what, got=repr(values)[:100]))
    if not 0 <= start < end < LONGEST_SEC:
        return unknown._replace(error=_bad("bad_times", "the times of a segment cannot be", start, end))
    error, said = None, one_line(text)
    if start < started_sec:
        error = _bad("unsorted", f"a segment begins before an earlier one, at {started_sec} s", start, end)
    elif start < spoken_sec - ROUNDING_SEC:
        error = _bad("overlap", f"a segment begins before an earlier one ends, at {spoken_sec} s", start, end)
    elif not said:
        error = _bad("empty_transcript", "a segment has no text", start, end)
    elif end - start > max_sec:
        error = _bad("too_long", f"a segment lasts more than {max_sec} s", start, end)
    return _Segment(float(start), float(end), said, spoken_sec, error)


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _bad(reason: str, what: str, start: float, end: float) -> BadSample:
    return BadSample(reason, what, got=f"{start} s to {end} s")
