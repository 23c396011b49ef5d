"""The networks of SpeechTokenizer, with weight norm folded: convolutional stages with an LSTM at the frame rate.

Convolutions are centred and reflect what lies within an input at its ends. A strided one whose input ends within a
stride reflects so much more that its last output is whole.

Shapes: C channels, N positions or samples, T frames, D width of the latents; B is 1.

Invariant: `Encoder.stages` and `Decoder.stages` give the same in pieces as at once (`slmkit.codec.stages`).

Example:
    latents = run_in_pieces(Encoder(weights / "encoder" / "model", config).stages, wave, piece_frames=1500)
"""

import torch
import torch.nn.functional as F

from slmkit.codec.base import Reach
from slmkit.codec.fields import Layer, reach
from slmkit.codec.lstm import Lstm, State, with_skip
from slmkit.codec.speechtokenizer.checkpoint import KERNEL, SpeechTokenizerConfig
from slmkit.codec.stages import Windowed, run_in_pieces
from slmkit.codec.transposed import Transposed
from slmkit.codec.weights import Weights

PIECE = 1000  # frames that the encoder's LSTM takes at a time
WHOLE_FRAMES, CONTEXT_FRAMES = 30_000, 1500  # which it hears at once, and around them where there are more


class Conv:
    """A convolution that keeps ceil(N / stride) positions."""

    def __init__(self, weights: Weights, stride: int = 1) -> None:
        self.weight, self.bias, self.stride = weights["conv.conv.weight"], weights["conv.conv.bias"], stride
        kernel = self.weight.shape[2]
        self.right = (kernel - stride) // 2
        self.left = kernel - stride - self.right

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        extra = -x.shape[2] % self.stride
        x = reflected(x, self.left, self.right + extra)
        return F.conv1d(x, self.weight, self.bias, stride=self.stride)

    @property
    def layer(self) -> Layer:
        """What it sees."""
        kernel = self.weight.shape[2]
        return Layer(kernel, self.stride, self.left, self.right, is_mirrored=True, rounds_up=True)


class Residual:
    """A learned shortcut plus wide and narrow convolutions behind ELUs."""

    def __init__(self, weights: Weights) -> None:
        self.wide = Conv(weights / "block.1")
        narrow, shortcut = weights / "block.3.conv.conv", weights / "shortcut.conv.conv"
        self.narrow, self.shortcut = narrow["weight"][:, :, 0], shortcut["weight"][:, :, 0]
        self.bias = (narrow["bias"] + shortcut["bias"])[:, None]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[1, C, N] -> [1, C, N]."""
        h = F.elu_(self.wide(F.elu(x)))
        return torch.addmm(self.bias, self.shortcut, x[0]).addmm_(self.narrow, h[0])[None]


class Encoder:
    """Waves to latents."""

    def __init__(self, weights: Weights, config: SpeechTokenizerConfig) -> None:
        strides, depth = config.strides[::-1], len(config.strides)
        self.first = Conv(weights / 0)
        self.residuals = [Residual(weights / (3 * i + 1)) for i in range(depth)]
        self.shrink = [Conv(weights / (3 * i + 3), stride) for i, stride in enumerate(strides)]
        lstm = weights / (3 * depth + 1) / "lstm"
        self.lstms = [
            [Lstm(lstm, 1, first=layer, suffix=suffix) for suffix in ("", "_reverse")]
            for layer in range(config.lstm_layers)
        ]
        self.last = Conv(weights / (3 * depth + 3))
        pairs = zip(self.residuals, self.shrink, strict=True)
        layers = [self.first.layer, *(conv.layer for one, shrink in pairs for conv in (one.wide, shrink))]
        self.stages = (
            Windowed(self.front, reach(layers, config.hop, 1), inputs_per_frame=config.hop),
            Windowed(self.back, Reach(CONTEXT_FRAMES, CONTEXT_FRAMES), least_blocks=WHOLE_FRAMES),
        )

    def front(self, waves: torch.Tensor) -> torch.Tensor:
        """[1, 1, N] -> [1, C, ceil(N / hop)]."""
        x = self.first(waves)
        for residual, shrink in zip(self.residuals, self.shrink, strict=True):
            x = shrink(F.elu_(residual(x)))
        return x

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """[1, C, T] -> [1, D, T]."""
        found = x
        for pair in self.lstms:
            found = both_ways(pair, found)
        for part in found.split(x.shape[1], dim=1):
            part += x
        after = Windowed(lambda part: self.last(F.elu(part)), Reach(KERNEL // 2, KERNEL // 2))
        return run_in_pieces([after], found, piece_frames=PIECE)


class Decoder:
    """Latents to waves."""

    def __init__(self, weights: Weights, config: SpeechTokenizerConfig) -> None:
        depth = len(config.strides)
        self.first = Conv(weights / 0)
        self.lstm = Lstm(weights / "1.lstm", config.lstm_layers)
        self.grow = [Grow(weights / (3 * i + 3), stride) for i, stride in enumerate(config.strides)]
        self.residuals = [Residual(weights / (3 * i + 4)) for i in range(depth)]
        self.last = Conv(weights / (3 * depth + 3))
        pairs = zip(self.grow, self.residuals, strict=True)
        layers = [layer for grow, residual in pairs for layer in (grow.layer, residual.wide.layer)]
        layers.append(self.last.layer)
        self.stages = (
            Windowed(self.first, Reach(KERNEL // 2, KERNEL // 2)),
            with_skip(self.lstm),
            Windowed(self.back, reach(layers, 1, config.hop), outputs_per_frame=config.hop),
        )

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """[1, C, T] -> waves [1, 1, T * hop]."""
        for grow, residual in zip(self.grow, self.residuals, strict=True):
            x = residual(grow(x))
        return self.last(F.elu_(x))


class Grow:
    """ELU, then `stride` positions for one."""

    def __init__(self, weights: Weights, stride: int) -> None:
        self.transposed = Transposed(weights / "convtr.convtr", stride)
        self.cut = stride - stride // 2
        self.layer = Layer(2 * stride, stride, self.cut, stride // 2, is_upsampling=True)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.transposed(F.pad(F.elu(x), (1, 1)), self.cut)


def reflected(x: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """`x` [1, C, N] with reflections of `left` and `right` values. A shorter one is taken as if zeros came after it."""
    missing = max(0, max(left, right) - x.shape[2] + 1)
    x = F.pad(F.pad(x, (0, missing)), (left, right), mode="reflect")
    return x[..., : x.shape[2] - missing]


def both_ways(pair: list[Lstm], x: torch.Tensor) -> torch.Tensor:
    """[1, C, T] -> [1, 2 * H, T]: what an LSTM from left to right gives, then one from right to left."""
    forward, backward = pair
    starts = range(0, x.shape[2], PIECE)
    state: State | None = None
    out = None
    for start in starts:
        part = x[..., start : start + PIECE]
        found, state = forward(part, state)
        if out is None:
            out = x.new_empty(1, 2 * found.shape[1], x.shape[2])
        out[:, : found.shape[1], start : start + PIECE] = found
    assert out is not None
    state = None
    for start in reversed(starts):
        part = x[..., start : start + PIECE]
        found, state = backward(part.flip(2), state)
        out[:, found.shape[1] :, start : start + PIECE] = found.flip(2)
    return out
