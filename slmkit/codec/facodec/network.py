"""The convolutional encoder and decoder of FACodec V2, on padded batches, with weight norm folded.

It knows nothing of codes or files. Each activation leaves zeros around every utterance, so the convolutions run without
padding of their own. A transposed convolution of stride s is a convolution of two taps that makes s outputs at a time.

Shapes: B utterances, C channels, N samples or positions, T frames, D = 256.

Invariant (law): an utterance's latents do not depend on the batch it travels in, its place there, or its padding.

Example:
    latents, ends = ConvEncoder(weights)(waves, Ends([16000, 12345], device))  # [B, D, T]
    waves = ConvDecoder(weights)(latents)  # [B, D, T] -> [B, 200 * T]
"""

import torch
import torch.nn.functional as F

from slmkit.codec.facodec.activation import SEEN, Activation, Ends
from slmkit.codec.facodec.checkpoint import Weights
from slmkit.codec.facodec.dimensions import (
    DECODER_STRIDES,
    DILATIONS,
    ENCODER_LAST_KERNEL,
    ENCODER_STRIDES,
    HOP,
    KERNEL,
    padding_of,
)

SIDE = KERNEL // 2  # zeros a wide convolution needs at each end


class Residual:
    """Adds narrow(activation(wide(activation(x)))) to x, in place."""

    def __init__(self, weights: Weights, dilation: int) -> None:
        self.dilation = dilation
        self.activations = Activation(weights / "block.0"), Activation(weights / "block.2")
        self.wide, narrow = weights / "block.1", weights / "block.3"
        self.narrow, self.bias = narrow["weight"][:, :, 0], narrow["bias"][:, None]

    def __call__(self, x: torch.Tensor, ends: Ends) -> torch.Tensor:
        h = self.activations[0](x, ends, SIDE * self.dilation)
        h = F.conv1d(h, self.wide["weight"], self.wide["bias"], dilation=self.dilation)
        h = self.activations[1](h, ends, 0)
        return x.add_(self.bias).baddbmm_(self.narrow.expand(len(x), -1, -1), h)


class DownStage:
    """Three residual units, then fewer positions with twice the channels."""

    def __init__(self, weights: Weights, stride: int) -> None:
        self.stride = stride
        self.residuals = [Residual(weights / f"block.{i}", dilation) for i, dilation in enumerate(DILATIONS)]
        self.activation = Activation(weights / f"block.{len(DILATIONS)}")
        self.shrink = weights / f"block.{len(DILATIONS) + 1}"

    def __call__(self, x: torch.Tensor, ends: Ends) -> tuple[torch.Tensor, Ends]:
        for residual in self.residuals:
            x = residual(x, ends)
        x = self.activation(x, ends, padding_of(self.stride))
        return F.conv1d(x, self.shrink["weight"], self.shrink["bias"], stride=self.stride), ends.strided(self.stride)


class UpStage:
    """More positions with half the channels, then three residual units."""

    def __init__(self, weights: Weights, stride: int) -> None:
        self.stride = stride
        self.activation = Activation(weights / "block.0")
        grow = weights / "block.1"
        self.weight, self.bias = two_tap_weight(grow["weight"], stride), grow["bias"].repeat_interleave(stride)
        self.residuals = [Residual(weights / f"block.{2 + i}", dilation) for i, dilation in enumerate(DILATIONS)]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, length = x.shape
        x = F.conv1d(self.activation(x, uniform(x), 1), self.weight, self.bias)
        x = x.view(batch, -1, self.stride, length + 1).transpose(2, 3).reshape(batch, -1, self.stride * (length + 1))
        x = x[..., padding_of(self.stride) :][..., : self.stride * length]
        for residual in self.residuals:
            x = residual(x, uniform(x))
        return x


class ConvEncoder:
    """Waves to latents."""

    def __init__(self, weights: Weights) -> None:
        self.first = weights / "block.0"
        self.stages = [DownStage(weights / f"block.{1 + i}", stride) for i, stride in enumerate(ENCODER_STRIDES)]
        self.activation = Activation(weights / f"block.{len(ENCODER_STRIDES) + 1}")
        self.last = weights / f"block.{len(ENCODER_STRIDES) + 2}"

    def __call__(self, waves: torch.Tensor, ends: Ends) -> tuple[torch.Tensor, Ends]:
        """Latents float32 [B, D, T] and their ends, of float32 [B, N], zero after each utterance."""
        x = F.conv1d(F.pad(waves[:, None], (SIDE, SIDE)), self.first["weight"], self.first["bias"])
        for stage in self.stages:
            x, ends = stage(x, ends)
        x = self.activation(x, ends, ENCODER_LAST_KERNEL // 2)
        return F.conv1d(x, self.last["weight"], self.last["bias"]), ends


class ConvDecoder:
    """Latents to waves."""

    def __init__(self, weights: Weights) -> None:
        self.first = weights / 0
        self.stages = [UpStage(weights / (1 + i), stride) for i, stride in enumerate(DECODER_STRIDES)]
        self.activation = Activation(weights / (len(DECODER_STRIDES) + 1))
        self.last = weights / (len(DECODER_STRIDES) + 2)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Waves float32 [B, 200 * T] in [-1, 1] of float32 [B, D, T]."""
        x = F.conv1d(latents, self.first["weight"], self.first["bias"], padding=SIDE)
        for stage in self.stages:
            x = stage(x)
        x = self.activation(x, uniform(x), SIDE)
        return torch.tanh(F.conv1d(x, self.last["weight"], self.last["bias"]))[:, 0]


def decoder_reach() -> tuple[int, int]:
    """Frames before and after a frame whose latents its samples depend on in `ConvDecoder`."""
    first, last = -(SIDE + SEEN), HOP - 1 + SIDE + SEEN  # of the positions that samples 0 .. HOP - 1 depend on
    side = sum(SIDE * dilation + 2 * SEEN for dilation in DILATIONS)
    for stride in reversed(DECODER_STRIDES):
        first, last = first - side + padding_of(stride), last + side + padding_of(stride)
        first, last = (
            first // stride - 1 - SEEN,
            last // stride + SEEN,
        )  # output i takes inputs i // stride - 1 and that
    return SIDE - first, SIDE + last


def uniform(x: torch.Tensor) -> Ends:
    """The ends of a batch without padding."""
    return Ends([x.shape[-1]] * len(x), x.device)


def two_tap_weight(weight: torch.Tensor, stride: int) -> torch.Tensor:
    """[C_in, C_out, 2 * stride] of a transposed convolution -> [C_out * stride, C_in, 2] of a convolution.

    Output position stride * i + r takes tap r of input i and tap stride + r of input i - 1.
    """
    taps = weight.unflatten(2, (2, stride)).permute(1, 3, 0, 2).flip(3)
    return taps.flatten(0, 1).contiguous()
