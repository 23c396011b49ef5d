"""Another rate: the tone stays the same, the length is that of the rounding rule."""

import numpy as np
import pytest

from slmkit.audio.resample import resampled
from slmkit.audio.units import resampled_samples


@pytest.mark.parametrize(("source", "target"), [(16000, 10000), (24000, 16000), (16000, 44100)])
def test_a_tone_stays_a_tone(source, target):
    num_samples = source // 2 + 1
    wave = np.sin(2 * np.pi * 440 * np.arange(num_samples) / source)
    found = resampled(wave, source, target)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(found)) / target)
    assert found.dtype == np.float32
    assert len(found) == resampled_samples(num_samples, source, target)
    assert np.abs(found - expected)[200:-200].max() < 1e-3


def test_the_same_rate_leaves_the_wave():
    wave = np.random.default_rng(0).standard_normal(99).astype(np.float32)
    assert resampled(wave, 16000, 16000) is wave
