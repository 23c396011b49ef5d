"""How far apart two waves sound: the log-mel distance.

Both waves are cut into 25 ms windows every 10 ms, and each window into 80 mel bands. In each frame the difference of
levels in dB is squared, averaged over the bands and rooted; the result is the mean over frames. Levels below -60 dB of
a full-scale sine count as -60 dB, so silence is silence. The waves must be aligned; the shorter is continued with
silence, so a difference in length costs.

Invariant: symmetric, 0 for equal waves, and g for a wave and itself g dB louder (above the floor).

Example:
    log_mel_distance(recorded, copied, 16000)     # 0: the same; 5 to 8: an intelligible copy; 12 to 20: other words
"""

import numpy as np
import torch

from slmkit.audio import units
from slmkit.audio.mel import mel_filterbank
from slmkit.audio.spectrum import Grid, stft

WINDOW_SEC = 0.025
HOP_SEC = 0.010
NUM_BANDS = 80
FLOOR_DB = -60.0
FFT_OVERSAMPLING = 4  # so that the lowest bands hold a bin each


def log_mel_distance(a: np.ndarray, b: np.ndarray, sample_rate: int) -> float:
    """Distance in dB of two waves, float [samples] at `sample_rate` Hz.

    Raises ValueError when both are shorter than half a hop.
    """
    grid = _grid(sample_rate)
    num_samples = max(len(a), len(b))
    num_frames = units.samples_to_frames(num_samples, grid.hop)
    if num_frames < 1:
        raise ValueError(f"waves of {len(a)} and {len(b)} samples are too short to compare")
    bank = torch.from_numpy(mel_filterbank(sample_rate, grid.n_fft, NUM_BANDS))
    levels = [_levels(np.pad(wave, (0, num_samples - len(wave))), num_frames, grid, bank) for wave in (a, b)]
    return float((levels[0] - levels[1]).square().mean(1).sqrt().mean())


def log_mel(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """What the distance compares, as a picture: levels of a wave in dB, float64 [bands, frames], lowest band first."""
    grid = _grid(sample_rate)
    bank = torch.from_numpy(mel_filterbank(sample_rate, grid.n_fft, NUM_BANDS))
    return _levels(wave, max(1, units.samples_to_frames(len(wave), grid.hop)), grid, bank).numpy().T


def _grid(sample_rate: int) -> Grid:
    window, hop = (units.seconds_to_samples(seconds, sample_rate) for seconds in (WINDOW_SEC, HOP_SEC))
    n_fft = FFT_OVERSAMPLING * 2 ** (window - 1).bit_length()
    return Grid(n_fft=n_fft, window=window, hop=hop)


def _levels(wave: np.ndarray, num_frames: int, grid: Grid, bank: torch.Tensor) -> torch.Tensor:
    """Levels float64 [T, M] in dB of a full-scale sine, never below `FLOOR_DB`."""
    samples = torch.from_numpy(np.asarray(wave, dtype=np.float64))
    full_scale = grid.weights(samples).sum() / 2
    magnitudes = stft(samples, num_frames, grid).abs() @ bank.T / full_scale
    return (20.0 * magnitudes.clamp(min=10.0 ** (FLOOR_DB / 20.0)).log10()).clamp(min=FLOOR_DB)
