"""The anti-aliased activation of FACodec and BigCodec, and where the utterances of a padded batch end.

The activation doubles the rate, adds sin^2 per channel and halves the rate again (arXiv 2206.04658, section 3.2). Both
filters act on blocks of positions, as one matrix product each: a block of inputs with its neighbours times a banded
matrix. No signal is spread with zeros and no product with a dropped sample is computed. One pass over memory does the
same: on a GPU with triton the kernel in `fused.py`, on a CPU with a C compiler that in `fused_cpu.py`. What is here is
their plain twin.

The network pads: activations repeat the last value of an utterance, convolutions see zeros after it. In a padded batch
every layer writes those few border values anew at each utterance's own end. What lies further out is finite and is
never read by a valid position.

Shapes: B utterances, C channels, N positions.

Invariant (law): the valid positions of an utterance hold what they would hold alone.

Example:
    ends = Ends([400, 250], device)
    x = activation(x, ends, margin=3)  # [B, C, N] -> [B, C, N + 6], zeros around each utterance
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from types import ModuleType

import torch

from slmkit.codec.snake import FILTER_CUTOFF, FILTER_HALF_WIDTH, FILTER_TAPS, SNAKE_EPSILON, fused_cpu, padding_of
from slmkit.codec.weights import Weights

REACH = FILTER_TAPS // 4  # positions the doubling filter sees to each side
REACH_DOUBLED = FILTER_TAPS // 2 - 1  # positions of the doubled rate the halving filter sees to each side
SEEN = REACH + (REACH_DOUBLED - 1) // 2  # positions to each side that an output of the activation depends on
BLOCK = 16  # positions per matrix row: wider wastes products with zeros, narrower makes small matrices
CACHED = 262144  # positions to filter at a time on a CPU: few calls, and intermediates that its last cache holds


class Ends:
    """How many positions of each row of a batch are its utterance's."""

    def __init__(self, counts: Sequence[int], device: torch.device, at: torch.Tensor | None = None) -> None:
        """`at`: the counts on the device, int64 [B, 1, 1], where they are there already: a transfer would wait."""
        self.counts, self.device = list(counts), device
        self._at: torch.Tensor | None = None
        if len(set(self.counts)) > 1:
            self._at = torch.tensor(self.counts, device=device)[:, None, None] if at is None else at

    def on_device(self) -> torch.Tensor | None:
        """int64 [B], or None when all utterances are as long."""
        return None if self._at is None else self._at.flatten()

    def per_row(self) -> torch.Tensor | int:
        """int64 [B, 1], or one number when all utterances are as long."""
        return self.counts[0] if self._at is None else self._at[:, :, 0]

    def strided(self, stride: int) -> "Ends":
        """The ends after a strided convolution of 2 * stride taps."""
        at = None
        if self._at is not None:  # as `strided_length`
            at = ((self._at + 2 * padding_of(stride) - 2 * stride) // stride + 1).clamp(min=0)
        return Ends([strided_length(count, stride) for count in self.counts], self.device, at)

    def hold(self, x: torch.Tensor, offset: int, width: int, factor: int = 1) -> None:
        """Write each utterance's last value into the `width` positions after it, in place.

        x: [B, C, N]; utterance i ends before position offset + factor * counts[i].
        """
        if self._at is not None:
            after = self._after(x, offset, width, factor)
            last = x.gather(2, after[:, :, :1] - 1)
            x.scatter_(2, after, last.expand(after.shape))

    def clear(self, x: torch.Tensor, offset: int, width: int) -> None:
        """Write zeros into the `width` positions of x [B, C, N] after each utterance, in place."""
        if self._at is not None and width:
            x.scatter_(2, self._after(x, offset, width, 1), 0.0)

    def valid(self) -> torch.Tensor | None:
        """bool [B, 1, max(counts)], or None when all utterances are as long."""
        if self._at is None:
            return None
        return torch.arange(max(self.counts), device=self.device) < self._at

    def _after(self, x: torch.Tensor, offset: int, width: int, factor: int) -> torch.Tensor:
        assert self._at is not None
        after = offset + factor * self._at + torch.arange(width, device=self.device)
        return after.expand(-1, x.shape[1], -1)


def strided_length(length: int, stride: int) -> int:
    """Positions a convolution of 2 * stride taps makes of `length`, 0 when there are too few."""
    return max(0, (length + 2 * padding_of(stride) - 2 * stride) // stride + 1)


class Activation:
    """Snake between a doubling and a halving of the rate, per channel."""

    def __init__(self, weights: Weights) -> None:
        """`weights`: `act.alpha` and `act.beta`, logarithms [C], and the filters, where they are not the usual ones."""
        self.alpha = weights["act.alpha"].exp()[:, None]
        self.height = self.alpha / (weights["act.beta"].exp()[:, None] + SNAKE_EPSILON)
        usual = kaiser_sinc_filter().to(self.alpha)
        up, down = (weights.get(key, usual) for key in ("upsample.filter", "downsample.lowpass.filter"))
        self.taps = up.flatten(), down.flatten()
        self.double, self.halve = doubling_matrix(self.taps[0]), halving_matrix(self.taps[1])

    def __call__(self, x: torch.Tensor, ends: Ends, margin: int) -> torch.Tensor:
        """float32 [B, C, N] -> [B, C, N + 2 * margin], with `margin` zeros before and after each utterance."""
        kernel = fused_on(x.device)
        return self.plain(x, ends, margin) if kernel is None else self.fused(kernel, x, ends, margin)

    def fused(self, kernel: ModuleType, x: torch.Tensor, ends: Ends, margin: int) -> torch.Tensor:
        """By `kernel`, the module `fused` or `fused_cpu`."""
        return kernel.activate(x, self.alpha[:, 0], self.height[:, 0], *self.taps, ends.on_device(), margin)

    def plain(self, x: torch.Tensor, ends: Ends, margin: int) -> torch.Tensor:
        """By torch's own operators, on any device."""
        batch, channels, length = x.shape
        out = x.new_empty(batch, channels, length + 2 * margin)
        out[..., :margin] = 0
        out[..., margin + length :] = 0
        step = max(1, CACHED // (batch * length)) if x.device.type == "cpu" else channels
        for start in range(0, channels, step):
            some = slice(start, start + step)
            filtered = self._filtered(x[:, some], some, ends)
            torch.div(filtered, self.alpha[some], out=out[:, some, margin : margin + length])
        ends.clear(out, margin, margin)
        return out

    def _filtered(self, x: torch.Tensor, channels: slice, ends: Ends) -> torch.Tensor:
        """The activation of some channels, times alpha: [B, c, N] -> [B, c, N].

        The filters are linear, so alpha is applied before them and undone after: half as many products.
        """
        batch, width, length = x.shape
        padded = -(-length // BLOCK) * BLOCK
        inputs = x.new_empty(batch, width, padded + 2 * REACH)
        torch.mul(x, self.alpha[channels], out=inputs[..., REACH : REACH + length])
        hold_ends(inputs, REACH, REACH + length)
        ends.hold(inputs, REACH, REACH)
        doubled = banded(inputs, self.double, BLOCK)
        waves = doubled.sin().square_()
        snake = x.new_empty(batch, width, 2 * (padded + REACH_DOUBLED))
        torch.addcmul(doubled, waves, self.height[channels], out=snake[..., REACH_DOUBLED:-REACH_DOUBLED])
        hold_ends(snake, REACH_DOUBLED, REACH_DOUBLED + 2 * length)
        ends.hold(snake, REACH_DOUBLED, REACH_DOUBLED, factor=2)
        return banded(snake, self.halve, 2 * BLOCK)[..., :length]


@functools.cache
def fused_on(device: torch.device) -> ModuleType | None:
    """The module whose kernel runs there: `fused` on a GPU with triton, `fused_cpu` on a CPU with a C compiler."""
    if device.type == "cpu":
        return fused_cpu if fused_cpu.works() else None
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from slmkit.codec.snake import fused

    return fused if fused.works_on(device) else None


@functools.cache
def kaiser_sinc_filter() -> torch.Tensor:
    """The anti-aliasing low-pass, float32 [1, 1, 12] on the CPU, of sum 1: a sinc under a Kaiser window."""
    attenuation = 2.285 * (FILTER_TAPS // 2 - 1) * math.pi * 4 * FILTER_HALF_WIDTH + 7.95  # dB
    with torch.device("cpu"):
        window = torch.kaiser_window(FILTER_TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
        time = torch.arange(FILTER_TAPS) - FILTER_TAPS // 2 + 0.5
    taps = window * torch.sinc(2 * FILTER_CUTOFF * time)
    return (taps / taps.sum()).reshape(1, 1, FILTER_TAPS)


def hold_ends(x: torch.Tensor, start: int, stop: int) -> None:
    """Repeat the first and the last of the values from `start` to `stop` outwards, in place."""
    x[..., :start] = x[..., start : start + 1]
    x[..., stop:] = x[..., stop - 1 : stop]


def banded(x: torch.Tensor, matrix: torch.Tensor, stride: int) -> torch.Tensor:
    """Windows of x [B, C, ...], `stride` apart, times `matrix` [window, outputs per window], joined in order."""
    window = matrix.shape[0]
    return (x.unfold(-1, window, stride).reshape(-1, window) @ matrix).view(*x.shape[:-1], -1)


def doubling_matrix(taps: torch.Tensor) -> torch.Tensor:
    """[BLOCK + 2 * REACH, 2 * BLOCK]: a window of inputs to the outputs of its block at twice the rate."""
    matrix = taps.new_zeros(BLOCK + 2 * REACH, 2 * BLOCK)
    for position in range(BLOCK):
        even, odd = slice(position, position + 2 * REACH), slice(position + 1, position + 1 + 2 * REACH)
        matrix[even, 2 * position] = 2 * taps[1::2].flip(0)
        matrix[odd, 2 * position + 1] = 2 * taps[0::2].flip(0)
    return matrix


def halving_matrix(taps: torch.Tensor) -> torch.Tensor:
    """[2 * BLOCK + 2 * REACH_DOUBLED, BLOCK]: a window at twice the rate to the outputs of its block."""
    matrix = taps.new_zeros(2 * BLOCK + 2 * REACH_DOUBLED, BLOCK)
    for position in range(BLOCK):
        matrix[2 * position : 2 * position + FILTER_TAPS, position] = taps
    return matrix
