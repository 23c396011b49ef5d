"""Short-time spectra, mel bands, log-mel spectra; the way back to a wave; and how far apart two waves sound.

Frame t covers the samples around the middle of hop t, so that T frames stand for exactly T * hop samples; beyond the
wave there is silence. A wave of another length than T * hop is cut or extended to it.

The log-mel distance of two waves: both are cut into 25 ms windows every 10 ms, and each window into 80 mel bands. In
each frame the difference of levels in dB is squared, averaged over the bands and rooted; the result is the mean over
frames. Levels below -60 dB of a full-scale sine count as -60 dB, so silence is silence. The waves must be aligned; the
shorter is continued with silence, so a difference in length costs.

Letters: N samples, T frames, F = n_fft // 2 + 1 frequencies, M mel bands; `...` any leading dimensions.

Invariants: istft(stft(wave)) is the wave again (to float rounding). The distance is symmetric, 0 for equal waves, and g
for a wave and itself g dB louder (above the floor).

Example:
    grid = Grid(n_fft=1024, window=800, hop=200)
    wave = griffin_lim(stft(wave, 80, grid).abs(), grid, iterations=32)
    log_mel_distance(recorded, copied, 16000)     # 0: the same; 5 to 8: an intelligible copy; 12 to 20: other words
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from slmkit.audio import units

MEL_FACTOR, MEL_CORNER_HZ = 2595.0, 700.0  # O'Shaughnessy's mel scale: m = 2595 log10(1 + f / 700)
# Slaney's mel scale: linear below 1 kHz, then logarithmic with 27 steps to a factor of 6.4
SLANEY_HZ_PER_MEL, SLANEY_BREAK_HZ, SLANEY_LOG_STEP = 200 / 3, 1000.0, math.log(6.4) / 27
GRIFFIN_LIM_MOMENTUM = 0.99  # Perraudin, Balazs, Soendergaard 2013, "A fast Griffin-Lim algorithm"
PART_FRAMES = 8192  # whose spectra are made at once
TINY = 1e-8  # keeps divisions finite; far below the smallest magnitude that is heard

# Of the distance, and of pictures
WINDOW_SEC = 0.025
HOP_SEC = 0.010
NUM_BANDS = 80
FLOOR_DB = -60.0
FFT_OVERSAMPLING = 4  # so that the lowest bands hold a bin each


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where frames lie and how they are weighted."""

    n_fft: int  # samples per transform
    window: int  # samples under the Hann window, in the middle of the transform
    hop: int  # samples from frame to frame

    @property
    def margin(self) -> int:
        """Samples of the first frame that lie before the wave."""
        return (self.n_fft - self.hop) // 2

    def padded(self, num_frames: int) -> int:
        """Samples from the start of the first transform to the end of the last."""
        return (num_frames - 1) * self.hop + self.n_fft

    def centred(self, window: torch.Tensor) -> torch.Tensor:
        """A window with zeros around it, [n_fft]."""
        before = (self.n_fft - len(window)) // 2
        return F.pad(window, (before, self.n_fft - len(window) - before))

    def weights(self, like: torch.Tensor) -> torch.Tensor:
        """The Hann window, [n_fft], with the device and dtype of `like`."""
        return self.centred(torch.hann_window(self.window, dtype=like.dtype, device=like.device))


@dataclass(frozen=True, kw_only=True, eq=False)
class LogMel:
    """How a log-mel spectrum is made: the natural logarithm of sums of magnitudes, weighted by mel bands."""

    grid: Grid
    window: torch.Tensor  # float [n_fft]
    bank: torch.Tensor  # float [M, F]
    floor: float  # smallest sum told from silence
    full_scale: float = 1.0  # sums are divided by it
    power_epsilon: float = 0.0  # added to powers, so that their roots have a gradient at 0

    def __call__(self, padded: torch.Tensor) -> torch.Tensor:
        """[..., T, M] of samples float [..., grid.padded(T)], those beyond the ends of the wave included."""
        spectra = torch.fft.rfft(padded.unfold(-1, self.grid.n_fft, self.grid.hop) * self.window)
        if self.power_epsilon:
            magnitudes = torch.sqrt(spectra.real.square() + spectra.imag.square() + self.power_epsilon)
        else:
            magnitudes = torch.hypot(spectra.real, spectra.imag)  # abs() takes a third longer to give the same
        return (magnitudes @ self.bank.T / self.full_scale).clamp(min=self.floor).log()

    def of(self, wave: torch.Tensor, num_frames: int) -> torch.Tensor:
        """[..., T, M] of a wave float [..., N] between silences, T = num_frames. The spectra of a long one, which take
        20 times its memory, are made for some frames at a time."""
        padded, grid = _with_silence(wave, num_frames, self.grid), self.grid
        parts = []
        for first in range(0, max(1, num_frames), PART_FRAMES):
            start, frames = first * grid.hop, min(PART_FRAMES, num_frames - first)
            parts.append(self(padded[..., start : start + grid.padded(frames)]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def mel_filterbank(
    sample_rate: int, n_fft: int, num_bands: int, *, top_hz: float | None = None, slaney: bool = False
) -> np.ndarray:
    """Weights float64 [num_bands, n_fft // 2 + 1] of triangular bands from 0 Hz to `top_hz` (half the sample rate).

    Evenly spaced on O'Shaughnessy's scale and of height 1, so that between the centres of the first and the last band
    they sum to 1; with `slaney` on his scale and of equal area. Raises ValueError when a band is narrower than the
    bins, so that it would see nothing.
    """
    top_hz = sample_rate / 2 if top_hz is None else top_hz
    to_mel, to_hertz = (_hertz_to_slaney, _slaney_to_hertz) if slaney else (hertz_to_mel, mel_to_hertz)
    edges = to_hertz(np.linspace(0.0, to_mel(top_hz), num_bands + 2))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    bank = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    if not bank.any(axis=1).all():
        raise ValueError(f"{num_bands} mel bands are too many for n_fft {n_fft} at {sample_rate} Hz")
    return bank * 2 / (high - low) if slaney else bank


def hertz_to_mel(hertz: np.ndarray | float) -> np.ndarray:
    """Mel value of frequencies in Hz, on O'Shaughnessy's scale."""
    return MEL_FACTOR * np.log10(1.0 + np.asarray(hertz) / MEL_CORNER_HZ)


def mel_to_hertz(mel: np.ndarray | float) -> np.ndarray:
    """Inverse of `hertz_to_mel`."""
    return MEL_CORNER_HZ * (10.0 ** (np.asarray(mel) / MEL_FACTOR) - 1.0)


def _hertz_to_slaney(hertz: float) -> float:
    """Of a frequency above 1 kHz."""
    return SLANEY_BREAK_HZ / SLANEY_HZ_PER_MEL + math.log(hertz / SLANEY_BREAK_HZ) / SLANEY_LOG_STEP


def _slaney_to_hertz(mel: np.ndarray) -> np.ndarray:
    above = mel - SLANEY_BREAK_HZ / SLANEY_HZ_PER_MEL
    return np.where(above < 0, mel * SLANEY_HZ_PER_MEL, SLANEY_BREAK_HZ * np.exp(SLANEY_LOG_STEP * above))


def log_mel_distance(a: np.ndarray, b: np.ndarray, sample_rate: int) -> float:
    """Distance in dB of two waves, float [samples] at `sample_rate` Hz.

    Raises ValueError when both are shorter than half a hop.
    """
    num_samples = max(len(a), len(b))
    if units.samples_to_frames(num_samples, _picture_mel(sample_rate).grid.hop) < 1:
        raise ValueError(f"waves of {len(a)} and {len(b)} samples are too short to compare")
    levels = [log_mel(np.pad(wave, (0, num_samples - len(wave))), sample_rate) for wave in (a, b)]
    return float(np.sqrt(np.square(levels[0] - levels[1]).mean(axis=0)).mean())


def log_mel(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """What the distance compares, and what pictures show of a wave, float [samples]: levels in dB of a full-scale sine,
    float64 [bands, frames], lowest band first, never below FLOOR_DB."""
    mel = _picture_mel(sample_rate)
    samples = torch.from_numpy(np.asarray(wave, dtype=np.float64))
    levels = mel.of(samples, max(1, units.samples_to_frames(len(wave), mel.grid.hop)))
    return (levels * (20.0 / math.log(10.0))).clamp(min=FLOOR_DB).numpy().T


def _picture_mel(sample_rate: int) -> LogMel:
    window, hop = (units.seconds_to_samples(seconds, sample_rate) for seconds in (WINDOW_SEC, HOP_SEC))
    grid = Grid(n_fft=FFT_OVERSAMPLING * 2 ** (window - 1).bit_length(), window=window, hop=hop)
    weights = grid.weights(torch.zeros(1, dtype=torch.float64))
    return LogMel(
        grid=grid,
        window=weights,
        bank=torch.from_numpy(mel_filterbank(sample_rate, grid.n_fft, NUM_BANDS)),
        floor=10.0 ** (FLOOR_DB / 20.0),
        full_scale=float(weights.sum() / 2),
    )


def stft(wave: torch.Tensor, num_frames: int, grid: Grid) -> torch.Tensor:
    """Spectra complex [..., T, F] of `wave` float [..., N], T = num_frames."""
    padded = _with_silence(wave, num_frames, grid)
    return torch.fft.rfft(padded.unfold(-1, grid.n_fft, grid.hop) * grid.weights(wave))


def _with_silence(wave: torch.Tensor, num_frames: int, grid: Grid) -> torch.Tensor:
    return F.pad(wave, (grid.margin, grid.padded(num_frames) - grid.margin - wave.shape[-1]))


def istft(spectra: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The wave float [B, T * hop] whose frames are nearest to `spectra`, complex [B, T, F]."""
    num_frames = spectra.shape[-2]
    frames = torch.fft.irfft(spectra, n=grid.n_fft)
    weights = grid.weights(frames)
    wave = _overlap_add(frames * weights, grid)
    envelope = _overlap_add((weights**2).expand(1, num_frames, -1), grid)
    return (wave / envelope.clamp(min=TINY))[:, grid.margin : grid.margin + num_frames * grid.hop]


def griffin_lim(magnitudes: torch.Tensor, grid: Grid, *, iterations: int) -> torch.Tensor:
    """A wave float [B, T * hop] whose spectra have about the given magnitudes, float [B, T, F] >= 0.

    Phases start at zero, so equal magnitudes give equal waves.
    """
    num_frames = magnitudes.shape[-2]
    spectra = torch.complex(magnitudes, torch.zeros_like(magnitudes))
    previous = torch.zeros_like(spectra)
    for _ in range(iterations):
        consistent = stft(istft(spectra, grid), num_frames, grid)
        ahead = consistent + GRIFFIN_LIM_MOMENTUM * (consistent - previous)
        spectra = magnitudes * ahead / ahead.abs().clamp(min=TINY)
        previous = consistent
    return istft(spectra, grid)


def griffin_lim_reach(grid: Grid, iterations: int) -> int:
    """Frames to each side of frame t whose magnitudes the samples of hop t in `griffin_lim` depend on.

    A periodic Hann window begins with a zero. In each round a frame takes in those that share samples with it; the last
    `istft` gives hop t the frames that touch it.
    """
    sharing = (grid.window - 2) // grid.hop
    touching = (grid.window // 2 + grid.hop // 2 - 1) // grid.hop
    return iterations * sharing + touching


def invert_mel(mel: torch.Tensor, bank: torch.Tensor, *, iterations: int) -> torch.Tensor:
    """Magnitudes float [..., F] >= 0 with magnitudes @ bank.T near `mel`, float [..., M] >= 0; bank [M, F].

    Multiplicative updates (Lee and Seung 2001), which keep magnitudes non-negative, from the bands spread over their
    bins.
    """
    magnitudes = (mel / bank.sum(1)) @ (bank / bank.sum(0).clamp(min=TINY))
    wanted = mel @ bank
    for _ in range(iterations):
        magnitudes = magnitudes * wanted / ((magnitudes @ bank.T) @ bank).clamp(min=TINY)
    return magnitudes


def _overlap_add(frames: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Sum of frames [B, T, n_fft] laid a hop apart, [B, padded(T)]."""
    size = (1, grid.padded(frames.shape[1]))
    columns = frames.transpose(1, 2).contiguous()
    return F.fold(columns, size, (1, grid.n_fft), stride=(1, grid.hop)).flatten(1)
