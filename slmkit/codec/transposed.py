"""A transposed convolution of 2 * stride taps as a convolution of two taps that makes `stride` outputs at a time.

Shapes: B utterances, C channels, N positions.

Invariant: equals torch's `conv_transpose1d` but for the order in which kernels add.
"""

import torch
import torch.nn.functional as F

from slmkit.codec.weights import Weights


class Transposed:
    """See the module. `weights`: `weight` [C_in, C_out, 2 * stride] and `bias` [C_out]."""

    def __init__(self, weights: Weights, stride: int) -> None:
        self._stride = stride
        self._weight = two_tap_weight(weights["weight"], stride)
        self._bias = weights["bias"].repeat_interleave(stride)

    def __call__(self, x: torch.Tensor, cut: int) -> torch.Tensor:
        """[B, C, N + 2], with a zero at each end, -> [B, C', stride * N]: the outputs from `cut` on."""
        batch, _, length = x.shape
        x = F.conv1d(x, self._weight, self._bias).view(batch, -1, self._stride, length - 1)
        return x.transpose(2, 3).flatten(2)[..., cut:][..., : self._stride * (length - 2)]


def two_tap_weight(weight: torch.Tensor, stride: int) -> torch.Tensor:
    """[C_in, C_out, 2 * stride] of a transposed convolution -> [C_out * stride, C_in, 2] of a convolution.

    Output position stride * i + r takes tap r of input i and tap stride + r of input i - 1.
    """
    taps = weight.unflatten(2, (2, stride)).permute(1, 3, 0, 2).flip(3)
    return taps.flatten(0, 1).contiguous()
