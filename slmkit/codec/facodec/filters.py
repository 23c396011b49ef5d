"""The fixed formulas of FACodec V2: low-pass filter, Hann window, mel bands, log-mel spectrum.

The published files carry the results as buffers; these formulas give them to networks made without a file.

Invariant: pure functions; the log-mel spectrum of a row of a batch depends on that row alone.

Example:
    mel = log_mel(waves, slaney_mel_basis(), hann_window())
"""

import functools
import math

import torch
import torch.nn.functional as F

from slmkit.codec.facodec.dimensions import (
    FFT,
    FILTER_CUTOFF,
    FILTER_HALF_WIDTH,
    FILTER_TAPS,
    HOP,
    MAGNITUDE_EPSILON,
    MEL_BANDS,
    MEL_FLOOR,
    MEL_TOP,
    SAMPLE_RATE,
    WINDOW,
)

# Slaney's mel scale: linear below 1 kHz, then logarithmic with 27 steps to a factor of 6.4
LINEAR_HZ_PER_MEL = 200 / 3
BREAK_HZ = 1000.0
BREAK_MEL = BREAK_HZ / LINEAR_HZ_PER_MEL
LOG_STEP = math.log(6.4) / 27


@functools.cache
def kaiser_sinc_filter() -> torch.Tensor:
    """The anti-aliasing low-pass, float32 [1, 1, 12] on the CPU, of sum 1: a sinc under a Kaiser window."""
    attenuation = 2.285 * (FILTER_TAPS // 2 - 1) * math.pi * 4 * FILTER_HALF_WIDTH + 7.95  # dB
    with torch.device("cpu"):
        window = torch.kaiser_window(FILTER_TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
        time = torch.arange(FILTER_TAPS) - FILTER_TAPS // 2 + 0.5
    taps = window * torch.sinc(2 * FILTER_CUTOFF * time)
    return (taps / taps.sum()).reshape(1, 1, FILTER_TAPS)


def hann_window() -> torch.Tensor:
    """Periodic Hann window, float32 [800] on the CPU."""
    return torch.hann_window(WINDOW, device="cpu")


@functools.cache
def slaney_mel_basis() -> torch.Tensor:
    """Triangles of equal area on Slaney's mel scale over the FFT's bins, float32 [80, 513] on the CPU."""
    top = BREAK_MEL + math.log(MEL_TOP / BREAK_HZ) / LOG_STEP
    with torch.device("cpu"):
        mels = torch.linspace(0, top, MEL_BANDS + 2, dtype=torch.float64)
        bins = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    edges = torch.where(
        mels < BREAK_MEL, mels * LINEAR_HZ_PER_MEL, BREAK_HZ * torch.exp(LOG_STEP * (mels - BREAK_MEL))
    )[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (edges[2:] - edges[:-2])).float()


def log_mel(padded: torch.Tensor, mel_basis: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Log magnitudes of mel bands, float32 [B, bands, frames].

    padded: float32 [B, N + 2 * 412], waves with their reflections. mel_basis: [bands, 513]. window: [800].
    """
    centred = F.pad(window, ((FFT - len(window)) // 2,) * 2)
    spectrum = torch.fft.rfft(padded.unfold(1, FFT, HOP) * centred)
    magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + MAGNITUDE_EPSILON)
    return (magnitude @ mel_basis.T).clamp(min=MEL_FLOOR).log().transpose(1, 2)
