"""The base of codecs that take one utterance at a time.

Many networks give an utterance other codes when it is padded, or lies in a batch with others: recurrent layers and
normalization look past its end, and kernels round by the shape of a batch. So that codes depend on the utterance alone,
each is encoded and decoded by itself. A long one goes through the networks in pieces (`stages.py`), within bounded
memory; whether it does depends on its own length alone.

A family gives two chains of stages and the quantizer between them. `reach_frames` and the decoding of streams follow.

Shapes: N samples, K streams, T frames, D width of the latents.

Invariant (law): codes of an utterance do not depend on the batch it travels in, its place there, or its padding.

Example:
    class Mine(SingleCodec):
        def encoding_stages(self): return (Windowed(self._encoder, Reach(2, 2), inputs_per_frame=320),)
        def quantize(self, latents): ...
        def decoding_stages(self): return (Windowed(self._decode, Reach(4, 4), outputs_per_frame=320),)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from slmkit.codec.base import CodecSpec, Encoded, Reach, check_codes, check_waves
from slmkit.codec.stages import Stage, Windowed, reach_of, run_in_pieces
from slmkit.precision import exact_float32

PIECE_SEC = 30.0  # longer audio is taken in pieces of this length


class SingleCodec(ABC):
    """See the module. All work is done in float32, whatever autocast or TF32 setting is on around it."""

    def __init__(self, spec: CodecSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device

    @abstractmethod
    def encoding_stages(self) -> Sequence[Stage]:
        """From a wave [1, 1, N] to latents [1, D, T]."""

    @abstractmethod
    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes int64 [K, T] of latents float32 [1, D, T]."""

    @abstractmethod
    def decoding_stages(self) -> Sequence[Stage]:
        """From codes int64 [1, K, T] to a wave [1, 1, T * hop]."""

    @property
    def reach_frames(self) -> Reach:
        return reach_of(self.decoding_stages())

    @property
    def piece_frames(self) -> int:
        """Frames that run at once."""
        return max(1, round(PIECE_SEC * self.spec.frame_rate))

    def num_frames(self, num_samples: int) -> int:
        """Frames that `num_samples` samples give. A family whose rule is not "hops, rounded up" has its own."""
        return math.ceil(num_samples / self.spec.hop_samples)

    @torch.inference_mode()
    def encode(self, waves: torch.Tensor, num_samples: torch.Tensor) -> Encoded:
        """As `Codec.encode`; there is no speaker vector."""
        counts = num_samples.tolist()
        num_frames = check_waves(self, waves, counts)
        shape = len(counts), len(self.spec.streams), max(num_frames, default=0)
        codes = torch.zeros(shape, dtype=torch.int32, device=self.device)
        on_device = torch.tensor(num_frames, device=self.device)  # now: later it would wait for the networks
        # Distances to all entries take far more memory than the latents: they are computed piece by piece as well.
        stages = (*self.encoding_stages(), Windowed(lambda latents: self.quantize(latents)[None], Reach(0, 0)))
        with exact_float32(self.device):
            for i, (count, frames) in enumerate(zip(counts, num_frames, strict=True)):
                wave = waves[i, :count].to(self.device, torch.float32)[None, None]
                codes[i, :, :frames] = run_in_pieces(stages, wave, piece_frames=self.piece_frames)[0]
        return Encoded(codes, on_device, torch.zeros(len(counts), 0, device=self.device))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """As `Codec.decode`; the speaker vector says nothing to this codec."""
        check_codes(codes, self.spec)
        hop = self.spec.hop_samples
        waves = torch.zeros(len(codes), hop * codes.shape[2], device=self.device)
        stages = (*self.decoding_stages(), Windowed(limited, Reach(0, 0), hop, hop))
        with exact_float32(self.device):
            for i, one in enumerate(codes.to(self.device, torch.int64) if waves.numel() else ()):
                waves[i] = run_in_pieces(stages, one[None], piece_frames=self.piece_frames)[0, 0]
        return waves


def limited(wave: torch.Tensor) -> torch.Tensor:
    """`wave` within [-1, 1]; what is not finite stays, so that it is noticed."""
    return wave.clamp(-1, 1).where(wave.isfinite(), wave)
