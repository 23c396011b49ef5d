"""Short-time spectra on a grid of hops, and the way back from magnitudes to a wave.

Frame t covers the samples around the middle of hop t, so that T frames stand for exactly T * hop samples; beyond the
wave there is silence. A wave of another length than T * hop is cut or extended to it.

Letters: N samples, T frames, F = n_fft // 2 + 1 frequencies, M mel bands; `...` any leading dimensions.

Invariant: istft(stft(wave)) is the wave again (to float rounding).

Example:
    grid = Grid(n_fft=1024, window=800, hop=200)
    wave = griffin_lim(stft(wave, 80, grid).abs(), grid, iterations=32)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

GRIFFIN_LIM_MOMENTUM = 0.99  # Perraudin, Balazs, Soendergaard 2013, "A fast Griffin-Lim algorithm"
TINY = 1e-8  # keeps divisions finite; far below the smallest magnitude that is heard


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

    def weights(self, like: torch.Tensor) -> torch.Tensor:
        """The window, [n_fft], with the device and dtype of `like`."""
        hann = torch.hann_window(self.window, dtype=like.dtype, device=like.device)
        before = (self.n_fft - self.window) // 2
        return F.pad(hann, (before, self.n_fft - self.window - before))


def stft(wave: torch.Tensor, num_frames: int, grid: Grid) -> torch.Tensor:
    """Spectra complex [..., T, F] of `wave` float [..., N], T = num_frames."""
    after = grid.padded(num_frames) - grid.margin - wave.shape[-1]
    padded = F.pad(wave, (grid.margin, after))
    return torch.fft.rfft(padded.unfold(-1, grid.n_fft, grid.hop) * grid.weights(wave))


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
