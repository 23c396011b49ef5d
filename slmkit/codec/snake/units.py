"""Residual units and the stages that change the rate, on padded batches, with weight norm folded (FACodec, BigCodec).

Each activation leaves zeros around every utterance, so the convolutions run without padding of their own. A transposed
convolution of stride s is a convolution of two taps that makes s outputs at a time.

Shapes: B utterances, C channels, N positions.

Invariant (law): what a stage gives for an utterance does not depend on its batch, its place there, or its padding.

Example:
    x, ends = DownStage(weights / "block.1", stride=2)(x, ends)  # [B, C, N] -> [B, 2 * C, N // 2]
"""

import torch
import torch.nn.functional as F

from slmkit.codec.fields import Spread, Taps
from slmkit.codec.snake import DILATIONS, KERNEL, padding_of
from slmkit.codec.snake.activation import SEEN, Activation, Ends
from slmkit.codec.weights import Weights

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


def uniform(x: torch.Tensor) -> Ends:
    """The ends of a batch without padding."""
    return Ends([x.shape[-1]] * len(x), x.device)


def two_tap_weight(weight: torch.Tensor, stride: int) -> torch.Tensor:
    """[C_in, C_out, 2 * stride] of a transposed convolution -> [C_out * stride, C_in, 2] of a convolution.

    Output position stride * i + r takes tap r of input i and tap stride + r of input i - 1.
    """
    taps = weight.unflatten(2, (2, stride)).permute(1, 3, 0, 2).flip(3)
    return taps.flatten(0, 1).contiguous()


ACTIVATED = Taps(2 * SEEN + 1, left=SEEN)
WIDE = Taps(KERNEL, left=SIDE)
RESIDUALS = [
    layer
    for dilation in DILATIONS
    for layer in (ACTIVATED, Taps(KERNEL, dilation=dilation, left=SIDE * dilation), ACTIVATED)
]


def down_layers(stride: int) -> list[Taps | Spread]:
    """What a `DownStage` sees."""
    return [*RESIDUALS, ACTIVATED, Taps(2 * stride, stride=stride, left=padding_of(stride))]


def up_layers(stride: int) -> list[Taps | Spread]:
    """What an `UpStage` sees."""
    return [ACTIVATED, Spread(2 * stride, stride=stride, cut=padding_of(stride)), *RESIDUALS]
