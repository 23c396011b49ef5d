"""How far a chain of convolutions sees: which inputs an output depends on.

Invariant: whatever the weights, no input outside the field changes an output, but for padding that repeats or reflects
inputs at the true ends; a layer that does so counts those inputs among its own.

Example:
    reach_through([Taps(7, left=3), Spread(10, stride=5, cut=3), Taps(7, left=3)], outputs_per_frame=5)  # Reach(4, 4)
"""

from collections.abc import Sequence
from typing import NamedTuple

from slmkit.codec.base import Reach


class Taps(NamedTuple):
    """A convolution with `left` padding values before its input."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    left: int = 0

    def inputs(self, first: int, last: int) -> tuple[int, int]:
        """First and last input that the outputs `first` to `last` depend on."""
        return first * self.stride - self.left, last * self.stride - self.left + (self.kernel - 1) * self.dilation


class Spread(NamedTuple):
    """A transposed convolution of whose output the first `cut` values are left out."""

    kernel: int
    stride: int
    cut: int = 0

    def inputs(self, first: int, last: int) -> tuple[int, int]:
        """As of `Taps`. Output m, counted before the cut, takes input j where 0 <= m - stride * j < kernel."""
        return -((self.kernel - 1 - first - self.cut) // self.stride), (last + self.cut) // self.stride


Layers = Sequence[Taps | Spread]


def reach_through(layers: Layers, *, inputs_per_frame: int = 1, outputs_per_frame: int = 1) -> Reach:
    """The frames of input that the outputs of a frame depend on, counted from that frame."""
    first, last = 0, outputs_per_frame - 1
    for layer in reversed(layers):
        first, last = layer.inputs(first, last)
    return Reach(max(0, -(first // inputs_per_frame)), max(0, last // inputs_per_frame))
