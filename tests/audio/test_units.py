"""The one rounding rule, as properties."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.audio import units

rates = st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000, 192000])
counts = st.integers(min_value=0, max_value=2**36)
hops = st.integers(min_value=1, max_value=2000)


@pytest.mark.parametrize(
    ("num_samples", "hop", "frames"),
    [(0, 200, 0), (99, 200, 0), (100, 200, 1), (299, 200, 1), (300, 200, 2), (200, 1, 200)],
)
def test_halves_round_up(num_samples, hop, frames):
    assert units.samples_to_frames(num_samples, hop) == frames


@given(counts, rates)
def test_samples_survive_the_way_over_seconds(num_samples, rate):
    assert units.seconds_to_samples(units.samples_to_seconds(num_samples, rate), rate) == num_samples


@given(counts, hops)
def test_frames_survive_the_way_over_samples(num_frames, hop):
    assert units.samples_to_frames(units.frames_to_samples(num_frames, hop), hop) == num_frames


@given(st.integers(0, 10**7), rates, hops)
def test_frames_survive_the_way_over_seconds(num_frames, rate, hop):
    assert units.seconds_to_frames(units.frames_to_seconds(num_frames, rate, hop), rate, hop) == num_frames


@given(counts, rates, rates)
def test_resampled_length_is_within_half_a_sample(num_samples, source, target):
    exact = Fraction(num_samples * target, source)
    assert abs(units.resampled_samples(num_samples, source, target) - exact) <= Fraction(1, 2)
    assert units.resampled_samples(num_samples, source, source) == num_samples


def test_seconds_are_rounded_once():
    assert units.seconds_to_frames(0.00624, 16000, 200) == 0  # 99.84 samples; by way of 100 samples it were 1
