"""The speaker encoder of "Generalized End-to-End Loss for Speaker Verification" (Wan and others, arXiv 1710.10467) with
the weights of PyPI's package `resemblyzer` (Apache 2.0, `pretrained.pt` in its wheel).

Three LSTM layers read mel powers of 1.6 s; the state after the last frame, through a linear layer and ReLU, is a vector
of length 1. An utterance is read in windows of 1.6 s that begin every 0.77 s, the last filled up with silence where
less than a quarter of it is missing, and its vector is their mean, again of length 1.

A wave that is quieter than -30 dB of full scale is first made as loud as that, as in the package. Long silences stay,
where the package would cut them out with webrtcvad: its vectors of speech with long pauses differ a little.

Shapes: N samples, W windows, T = 160 frames of a window, M = 40 mel bands, D = 256 width of a vector.

Invariant (law): the vector of an utterance depends on its own samples only.

Example:
    voice = GE2EVoice.load("resemblyzer/pretrained.pt")
    voice.vector(wave, 16000)       # float32 [256]
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from slmkit.audio.mel import mel_filterbank
from slmkit.errors import UserError
from slmkit.files import write_json
from slmkit.precision import exact_float32
from slmkit.voice.base import Vector, heard, weights_sha256
from slmkit.weights import read_weights

KIND = "ge2e"
PUBLISHED_FILE = "pretrained.pt"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SAMPLE_RATE = 16_000  # Hz
FRAME_SAMPLES, HOP_SAMPLES = 400, 160  # 25 ms every 10 ms
NUM_BANDS = 40
WINDOW_FRAMES, WINDOW_HOP = 160, 77  # frames
LEAST_HEARD = 19_200  # samples of a window that must be of the wave, unless it is the first: 75 %
WIDTH, NUM_LAYERS = 256, 3
TARGET_RMS = 10 ** (-30 / 20)  # of full scale
BATCH_WINDOWS = 64  # at a time: 50 s
BLOCK_SAMPLES = 2**20
TINY = 1e-12  # keeps the length of a vector of zeros from dividing by zero


class _Network(nn.Module):
    """The layers, under the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(NUM_BANDS, WIDTH, NUM_LAYERS, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """Vectors float32 [W, D] of length 1, of mel powers float32 [W, T, M]."""
        _, (states, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(states[-1])), dim=1, eps=TINY)


class GE2EVoice:
    """See the module and `VoiceEncoder`."""

    dim, sample_rate, min_samples = WIDTH, SAMPLE_RATE, FRAME_SAMPLES

    def __init__(self, weights: Mapping[str, torch.Tensor], device: str | torch.device = "cpu") -> None:
        """`weights` by their published names; others are left out. Raises ValueError when they do not fit."""
        with torch.device("meta"):  # draws no random numbers
            self._network = _Network()
        shapes = {name: tuple(tensor.shape) for name, tensor in self._network.state_dict().items()}
        found = {name: weights[name] for name in shapes if isinstance(weights.get(name), torch.Tensor)}
        wrong = [name for name, shape in shapes.items() if name not in found or tuple(found[name].shape) != shape]
        if wrong:
            raise ValueError(f"without {', '.join(wrong[:3])} of the right shape")
        found = {name: tensor.detach().float().contiguous() for name, tensor in found.items()}
        if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
            raise ValueError("with weights that are not finite")
        self.device, self._weights = torch.device(device), found
        self._network.load_state_dict(found, assign=True)
        self._network.eval().requires_grad_(False).to(self.device)
        self._window = torch.hann_window(FRAME_SAMPLES, device=self.device)
        bank = mel_filterbank(SAMPLE_RATE, FRAME_SAMPLES, NUM_BANDS, slaney=True)
        self._bank = torch.from_numpy(bank).float().to(self.device)

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> "GE2EVoice":
        """The encoder in a file: `pretrained.pt`, or the safetensors that `save` writes.

        Raises UserError when it holds no such encoder.
        """
        weights = read_weights(Path(path))
        published = weights.get("model_state", weights)
        try:
            return GE2EVoice(published if isinstance(published, dict) else {}, device)
        except ValueError as error:
            expected = f"the {PUBLISHED_FILE} of PyPI's package resemblyzer"
            raise UserError(f"{path} is not a GE2E voice encoder: {error}", expected=expected) from error

    def save(self, directory: Path) -> None:
        safetensors.torch.save_file(self._weights, directory / WEIGHTS_FILE)
        write_json(directory / CONFIG_FILE, {"model_type": KIND})

    @functools.cached_property
    def sha256(self) -> str:
        return weights_sha256(KIND, self._weights)

    @torch.inference_mode()
    def vector(self, wave: npt.NDArray[Any], sample_rate: int) -> Vector:
        """As `VoiceEncoder.vector`."""
        samples = heard(self, wave, sample_rate)
        num_windows = 1 + max(0, len(samples) - LEAST_HEARD) // (WINDOW_HOP * HOP_SAMPLES)
        gain, total = _gain(samples), torch.zeros(WIDTH, dtype=torch.float64)
        with exact_float32(self.device):
            for first in range(0, num_windows, BATCH_WINDOWS):
                mels = self._mels(samples, gain, first, min(BATCH_WINDOWS, num_windows - first))
                total += self._network(mels).double().sum(0).cpu()
        return F.normalize(total, dim=0, eps=TINY).float().numpy()

    def _mels(self, samples: npt.NDArray[np.float32], gain: float, first: int, count: int) -> torch.Tensor:
        """Mel powers float32 [count, T, M] of the windows from number `first` on; beyond the wave is silence.

        Frame t of the wave lies around sample t * HOP_SAMPLES.
        """
        start = first * WINDOW_HOP * HOP_SAMPLES - FRAME_SAMPLES // 2
        num_frames = (count - 1) * WINDOW_HOP + WINDOW_FRAMES
        stop = start + (num_frames - 1) * HOP_SAMPLES + FRAME_SAMPLES
        piece = torch.from_numpy(samples[max(0, start) : stop] * np.float32(gain)).to(self.device)
        piece = F.pad(piece, (max(0, -start), stop - max(0, start) - len(piece)))
        spectra = torch.fft.rfft(piece.unfold(0, FRAME_SAMPLES, HOP_SAMPLES) * self._window)
        powers = (spectra.real.square() + spectra.imag.square()) @ self._bank.T
        return powers.unfold(0, WINDOW_FRAMES, WINDOW_HOP).transpose(1, 2).contiguous()


def _gain(samples: npt.NDArray[np.float32]) -> float:
    """What makes a wave float32 [N] that is too quiet as loud as TARGET_RMS; 1 for others, and for digital silence."""
    blocks = (samples[start : start + BLOCK_SAMPLES] for start in range(0, len(samples), BLOCK_SAMPLES))
    rms = math.sqrt(sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks) / len(samples))
    return max(1.0, TARGET_RMS / rms) if rms else 1.0
