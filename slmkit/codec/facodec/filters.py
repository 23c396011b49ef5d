"""The fixed formulas of FACodec V2: Hann window, mel bands, log-mel spectrum.

The published files carry the results as buffers; these formulas give them to networks made without a file.

Invariant: pure functions; the log-mel spectrum of a row of a batch depends on that row alone.

Example:
    mel = log_mel_of(slaney_mel_basis(), hann_window())(reflected)
"""

import functools

import torch

from slmkit.audio.mel import Grid, LogMel, mel_filterbank
from slmkit.codec.facodec.dimensions import (
    FFT,
    HOP,
    MAGNITUDE_EPSILON,
    MEL_BANDS,
    MEL_FLOOR,
    MEL_TOP,
    SAMPLE_RATE,
    WINDOW,
)


def hann_window() -> torch.Tensor:
    """Periodic Hann window, float32 [800] on the CPU."""
    return torch.hann_window(WINDOW, device="cpu")


@functools.cache
def slaney_mel_basis() -> torch.Tensor:
    """Triangles of equal area on Slaney's mel scale over the FFT's bins, float32 [80, 513] on the CPU."""
    return torch.from_numpy(mel_filterbank(SAMPLE_RATE, FFT, MEL_BANDS, top_hz=MEL_TOP, slaney=True)).float()


def log_mel_of(mel_basis: torch.Tensor, window: torch.Tensor) -> LogMel:
    """The log-mel spectrum of FACodec by a file's own buffers: mel_basis [bands, 513], window [800].

    It takes waves with their reflections, float32 [B, N + 2 * 412].
    """
    grid = Grid(n_fft=FFT, window=WINDOW, hop=HOP)
    return LogMel(
        grid=grid, window=grid.centred(window), bank=mel_basis, floor=MEL_FLOOR, power_epsilon=MAGNITUDE_EPSILON
    )
