"""Waves at another sample rate.

Invariant: the number of samples is `units.resampled_samples` of the wave's; a wave at the wanted rate is left as it is.

Example:
    heard = resampled(wave, 24000, 16000)
"""

import numpy as np
import soxr


def resampled(wave: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """`wave`, float [samples] at `source_rate` Hz, as float32 at `target_rate` Hz (soxr HQ)."""
    wave = np.asarray(wave, dtype=np.float32)
    return wave if source_rate == target_rate else soxr.resample(wave, source_rate, target_rate, quality="HQ")
