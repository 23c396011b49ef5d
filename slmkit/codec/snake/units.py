"""Residual units and the stages that change the rate, on padded batches, with weight norm folded (FACodec, BigCodec).

Each activation leaves zeros around every utterance, so the convolutions run without padding of their own.

Shapes: B utterances, C channels, N positions.

Invariant (law): what a stage gives for an utterance does not depend on its batch, its place there, or its padding.

Example:
    x, ends = DownStage(weights / "block.1", stride=2)(x, ends)  # [B, C, N] -> [B, 2 * C, N // 2]
"""

import torch
import torch.nn.functional as F

from slmkit.codec.fields import Layer
from slmkit.codec.snake import DILATIONS, KERNEL, padding_of
from slmkit.codec.snake.activation import SEEN, Activation, Ends
from slmkit.codec.transposed import Transposed
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
        self.grow = Transposed(weights / "block.1", stride)
        self.residuals = [Residual(weights / f"block.{2 + i}", dilation) for i, dilation in enumerate(DILATIONS)]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grow(self.activation(x, uniform(x), 1), padding_of(self.stride))
        for residual in self.residuals:
            x = residual(x, uniform(x))
        return x


def uniform(x: torch.Tensor) -> Ends:
    """The ends of a batch without padding."""
    return Ends([x.shape[-1]] * len(x), x.device)


ACTIVATED = Layer(2 * SEEN + 1, 1, SEEN, SEEN)
WIDE = Layer(KERNEL, 1, SIDE, SIDE)
RESIDUALS = [
    layer
    for dilation in DILATIONS
    for layer in (ACTIVATED, Layer(2 * SIDE * dilation + 1, 1, SIDE * dilation, SIDE * dilation), ACTIVATED)
]


def down_layers(stride: int) -> list[Layer]:
    """What a `DownStage` sees."""
    return [*RESIDUALS, ACTIVATED, Layer(2 * stride, stride, padding_of(stride), padding_of(stride))]


def up_layers(stride: int) -> list[Layer]:
    """What an `UpStage` sees."""
    return [ACTIVATED, Layer(2 * stride, stride, padding_of(stride), stride // 2, is_upsampling=True), *RESIDUALS]
