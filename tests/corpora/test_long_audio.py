"""Long recordings: full excerpts, silence around them, and no segment lost."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.corpora.base import Cut
from slmkit.corpora.long_audio import ROUNDING_SEC, SLACK_SEC, Excerpt, excerpts
from slmkit.errors import BadSample


def segment(start, end, text="x"):
    return {"start": start, "end": end, "text": text}


def test_consecutive_segments_fill_a_excerpt():
    found = list(excerpts([segment(1, 4, " One. "), segment(5, 9, "Two."), segment(9.2, 14, "Three.")], 10.0))
    assert found == [
        Excerpt(Cut(1.0, 9.0, 0.5, 9.2), "One. Two."),
        Excerpt(Cut(9.2, 14.0, 9.0, 14.5), "Three."),
    ]


def test_the_silence_of_a_excerpt_ends_where_the_recording_does():
    (excerpt,) = excerpts([segment(0.1, 4)], 10.0, seconds=4.2)
    assert excerpt.cut == Cut(0.1, 4.0, 0.0, 4.2)
    (full,) = excerpts([segment(1.0, 4.0)], 3.2)
    assert full.cut == Cut(1.0, 4.0, pytest.approx(0.9), pytest.approx(4.1))  # never longer than max_sec


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (segment(3, 3), "bad_times"),
        (segment(4, 3), "bad_times"),
        (segment(-1, 3), "bad_times"),
        (segment(math.nan, 3), "bad_times"),
        (segment(2, math.inf), "bad_times"),
        (segment(2, 10**400), "bad_times"),
        (segment(2.5, 2.9, " "), "empty_transcript"),
        (segment(0.5, 3), "unsorted"),
        (segment(1.5, 3), "overlap"),
        (segment(2, 60), "too_long"),
        (segment("2", 3), "malformed"),
        (segment(True, 3), "malformed"),
        (segment(2, None), "malformed"),
        (segment(2, 3, 7), "malformed"),
        ({}, "malformed"),
        (None, "malformed"),
        ([2, 3, "x"], "malformed"),
    ],
)
def test_a_bad_segment_ends_the_excerpt_and_is_counted(bad, reason):
    first, refused, last = excerpts([segment(1, 2, "One."), bad, segment(70, 75, "Two.")], 30.0)
    assert (refused.reason, first.text, last.text) == (reason, "One.", "Two.")
    assert first.cut.latest_sec == (2.0 if reason not in ("empty_transcript",) else 2.5)
    assert last.cut.earliest_sec == (70.0 if reason in ("bad_times", "malformed") else 69.5)


def test_rounded_times_are_no_overlap():
    (excerpt,) = excerpts([segment(0, 2), segment(2 - ROUNDING_SEC / 2, 4)], 30.0)
    assert excerpt.text == "x x"
    for first, second in [excerpts([segment(0, 2), segment(2 - ROUNDING_SEC / 2, 4)], 3.0)]:
        assert first.cut.latest_sec >= first.cut.end_sec == 2.0
        assert second.cut.earliest_sec <= second.cut.start_sec


TIMES = st.floats(-1, 40) | st.sampled_from([math.nan, math.inf, 0.0, 5.0])
ANY = st.builds(segment, TIMES, TIMES, st.sampled_from(["a", "b c", ""]))


@st.composite
def sound(draw):
    """Segments in order, with pauses."""
    at, found = 0.0, []
    for i in range(draw(st.integers(0, 12))):
        at += draw(st.floats(0, 3))
        length = draw(st.floats(0.1, 9))
        found.append(segment(at, at + length, f"w{i}"))
        at += length
    return found


@settings(deadline=None)
@given(sound(), st.floats(1, 30))
def test_excerpts_are_as_full_as_can_be_and_hold_every_segment_once(segments, max_sec):
    found = list(excerpts(segments, max_sec))
    words = [f.text for f in found if isinstance(f, Excerpt)]
    refused = [f for f in found if isinstance(f, BadSample)]
    usable = [s for s in segments if s["end"] - s["start"] <= max_sec]
    assert " ".join(words).split() == [s["text"] for s in usable]
    assert len(refused) == len(segments) - len(usable)
    for excerpt, following in itertools.pairwise(found):
        if isinstance(excerpt, Excerpt) and isinstance(following, Excerpt):
            first_word = next(s for s in segments if s["text"] == following.text.split()[0])
            assert first_word["end"] - excerpt.cut.start_sec > max_sec
            assert excerpt.cut.latest_sec <= following.cut.start_sec + ROUNDING_SEC


@settings(deadline=None)
@given(st.lists(ANY | st.none() | st.integers(), max_size=12), st.floats(0.1, 30), st.none() | st.floats(0.1, 50))
def test_nothing_breaks_it_and_every_segment_is_counted(segments, max_sec, seconds):
    found = list(excerpts(segments, max_sec, seconds))
    refused = sum(isinstance(f, BadSample) for f in found)
    words = sum(f.text.count("a") + f.text.count("b c") for f in found if isinstance(f, Excerpt))
    assert refused + words == len(segments)
    for excerpt in found:
        if isinstance(excerpt, Excerpt):
            start, end, earliest, latest = excerpt.cut
            assert 0 <= earliest <= start < end <= latest < math.inf
            assert end - start <= max_sec
            assert latest - earliest <= max(max_sec, end - start) + 1e-9
            assert max(start - earliest, latest - end) <= SLACK_SEC
