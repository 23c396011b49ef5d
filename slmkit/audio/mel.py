"""The mel filter bank: triangles on the mel scale of O'Shaughnessy, m = 2595 log10(1 + f / 700).

Invariant: weights are in [0, 1], and between the centres of the first and the last band they sum to 1 at every
frequency.

Example:
    bank = mel_filterbank(16000, 1024, 80)     # float64 [80, 513]
    mel = magnitudes @ bank.T
"""

import numpy as np

MEL_FACTOR = 2595.0
MEL_CORNER_HZ = 700.0


def hertz_to_mel(hertz: np.ndarray | float) -> np.ndarray:
    """Mel value of frequencies in Hz."""
    return MEL_FACTOR * np.log10(1.0 + np.asarray(hertz) / MEL_CORNER_HZ)


def mel_to_hertz(mel: np.ndarray | float) -> np.ndarray:
    """Inverse of `hertz_to_mel`."""
    return MEL_CORNER_HZ * (10.0 ** (np.asarray(mel) / MEL_FACTOR) - 1.0)


def mel_filterbank(sample_rate: int, n_fft: int, num_bands: int) -> np.ndarray:
    """Weights float64 [num_bands, n_fft // 2 + 1] of bands evenly spaced in mel from 0 Hz to half the sample rate.

    Raises ValueError when a band is narrower than the bins, so that it would see nothing.
    """
    edges = mel_to_hertz(np.linspace(0.0, hertz_to_mel(sample_rate / 2), num_bands + 2))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    bank = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    if not bank.any(axis=1).all():
        raise ValueError(f"{num_bands} mel bands are too many for n_fft {n_fft} at {sample_rate} Hz")
    return bank
