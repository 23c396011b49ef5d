"""Seconds, samples and frames, with one rounding rule: to the nearest whole number, halves up.

The arithmetic is exact (rational numbers), so lengths never depend on the order of multiplications.

Invariant: seconds_to_samples(samples_to_seconds(n, rate), rate) == n.

Example:
    seconds_to_samples(1.5, 16000)        # 24000
    samples_to_frames(24100, 200)         # 121, since 120.5 rounds up
"""

import math
from fractions import Fraction

HALF = Fraction(1, 2)


def nearest(value: Fraction) -> int:
    """The rounding rule: nearest whole number, halves up."""
    return math.floor(value + HALF)


def seconds_to_samples(seconds: float, sample_rate: int) -> int:
    """Samples in `seconds` at `sample_rate` Hz."""
    return nearest(Fraction(seconds) * sample_rate)


def samples_to_seconds(num_samples: int, sample_rate: int) -> float:
    """Seconds that `num_samples` samples last at `sample_rate` Hz."""
    return num_samples / sample_rate


def samples_to_frames(num_samples: int, hop_samples: int) -> int:
    """Frames in `num_samples` samples, one every `hop_samples`."""
    return nearest(Fraction(num_samples, hop_samples))


def frames_to_seconds(num_frames: int, sample_rate: int, hop_samples: int) -> float:
    """Seconds that `num_frames` frames stand for."""
    return num_frames * hop_samples / sample_rate
