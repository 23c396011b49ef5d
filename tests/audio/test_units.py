"""The one rounding rule, as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.audio import units

rates = st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000, 192000])
counts = st.integers(min_value=0, max_value=2**36)


@pytest.mark.parametrize(
    ("num_samples", "hop", "frames"),
    [(0, 200, 0), (99, 200, 0), (100, 200, 1), (299, 200, 1), (300, 200, 2), (200, 1, 200)],
)
def test_halves_round_up(num_samples, hop, frames):
    assert units.samples_to_frames(num_samples, hop) == frames


@given(counts, rates)
def test_samples_survive_the_way_over_seconds(num_samples, rate):
    assert units.seconds_to_samples(units.samples_to_seconds(num_samples, rate), rate) == num_samples


@given(counts, rates, st.integers(min_value=1, max_value=2000))
def test_frames_survive_the_way_over_seconds(num_frames, rate, hop):
    seconds = units.frames_to_seconds(num_frames, rate, hop)
    assert units.samples_to_frames(units.seconds_to_samples(seconds, rate), hop) == num_frames
