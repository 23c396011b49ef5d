"""How far a stack of convolutions looks, computed from its kernels, strides, dilations and paddings.

The interval of input that an output needs is carried back through the layers, for every frame of an input that is long
enough to have a beginning, a middle and an end. Both ends count: padding by reflection makes the first samples depend
on what comes after them, and the last on what came before, also in causal networks.

Shapes: T frames, R lengths of input that end within a frame.

Invariant: an output frame depends on no frame outside of the reach, and the reach is the smallest of which this holds
as long as no weight is 0.

Example:
    reach([Layer(7, 1, 3, 3), Layer(10, 5, 3, 2, is_upsampling=True)], inputs_per_frame=1, outputs_per_frame=5)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slmkit.codec.base import Reach
from slmkit.errors import UserError

MOST_FRAMES = 2**14  # in which a reach is looked for; more is no codec


class Layer(NamedTuple):
    """A convolution, or a transposed one (`is_upsampling`)."""

    kernel: int  # with its dilation
    stride: int
    left: int  # values put before the input; of a transposed convolution, those cut from the output
    right: int  # the same at the end
    is_upsampling: bool = False
    is_mirrored: bool = False  # padded by reflection
    rounds_up: bool = False  # a last stride that is not full gives an output as well


def reach(layers: Sequence[Layer], inputs_per_frame: int, outputs_per_frame: int) -> Reach:
    """How many frames before and after an output's own its samples depend on."""
    ragged = any(layer.rounds_up and layer.stride > 1 for layer in layers)
    missing = np.arange(inputs_per_frame if ragged else 1)[:, None]  # [R, 1]
    num_frames = 16
    while num_frames <= MOST_FRAMES:
        found = _reach_within(layers, inputs_per_frame, outputs_per_frame, num_frames, missing)
        if num_frames > 2 * (found.before or 0) + 2 * (found.after or 0) + 8:
            return found
        num_frames *= 2
    raise UserError(
        "a network of this codec looks too far", got=f"more than {MOST_FRAMES // 4} frames", expected="less"
    )


def _reach_within(
    layers: Sequence[Layer], inputs_per_frame: int, outputs_per_frame: int, num_frames: int, missing: np.ndarray
) -> Reach:
    """As `reach`, of inputs of `num_frames` frames of which the last lack `missing` [R, 1] values."""
    lengths = [num_frames * inputs_per_frame - missing]  # of the input, then of what each layer gives
    for layer in layers:
        length = lengths[-1]
        if layer.is_upsampling:
            lengths.append((length - 1) * layer.stride + layer.kernel - layer.left - layer.right)
        elif layer.rounds_up:
            lengths.append(-(-length // layer.stride))
        else:
            lengths.append((length + layer.left + layer.right - layer.kernel) // layer.stride + 1)
    frame = np.arange(num_frames)[None]  # [1, T]
    first = frame * outputs_per_frame + np.zeros_like(missing)
    last = first + outputs_per_frame - 1
    first, last = np.minimum(first, lengths[-1] - 1), np.minimum(last, lengths[-1] - 1)
    for layer, length in zip(reversed(layers), reversed(lengths[:-1]), strict=True):
        if layer.is_upsampling:
            first = -(-(first + layer.left - layer.kernel + 1) // layer.stride)
            last = (last + layer.left) // layer.stride
        else:
            first = first * layer.stride - layer.left
            last = last * layer.stride - layer.left + layer.kernel - 1
        if layer.is_mirrored:
            beyond, before = np.maximum(last - (length - 1), 0), np.maximum(-first, 0)
            first = np.where(beyond > 0, np.minimum(first, length - 1 - beyond), first)
            last = np.where(before > 0, np.maximum(last, before), last)
        first, last = np.clip(first, 0, length - 1), np.clip(last, 0, length - 1)
    return Reach(int((frame - first // inputs_per_frame).max()), int((last // inputs_per_frame - frame).max()))
