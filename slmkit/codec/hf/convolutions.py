"""Stacks of convolutions of transformers' networks as stages, with their reach.

Invariant: the reach is the smallest outside of which no output frame depends on an input, as long as no weight is 0.

Example:
    decoder = windowed(model.decoder.layers)  # Windowed(run, Reach(before=3, after=0), outputs_per_frame=320)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn

from slmkit.codec.fields import Layer, reach
from slmkit.codec.stages import Windowed
from slmkit.errors import UserError


def layers_of(modules: Iterable[nn.Module]) -> Iterator[Layer]:
    """The convolutions of `modules`, in the order in which they were defined, which is that in which they run.

    Branches beside a convolution (residual connections) look no further than it does. Raises UserError for a module
    that looks at all time.
    """
    for module in modules:
        inner = getattr(module, "conv", None)
        if hasattr(module, "causal") and isinstance(inner, nn.Conv1d):  # SEANet's: padded outside
            kernel, stride = (inner.kernel_size[0] - 1) * inner.dilation[0] + 1, inner.stride[0]
            right = 0 if module.causal else (kernel - stride) // 2
            mirrored = getattr(module, "pad_mode", "") == "reflect"
            yield Layer(kernel, stride, kernel - stride - right, right, is_mirrored=mirrored, rounds_up=True)
        elif hasattr(module, "causal") and isinstance(inner, nn.ConvTranspose1d):
            kernel, stride = inner.kernel_size[0], inner.stride[0]
            share = float(module.trim_right_ratio) if module.causal else 0.0  # type: ignore[arg-type]
            right = math.ceil((kernel - stride) * share) if module.causal else (kernel - stride) // 2
            yield Layer(kernel, stride, kernel - stride - right, right, is_upsampling=True)
        elif isinstance(module, nn.Conv1d):
            kernel, padding = (module.kernel_size[0] - 1) * module.dilation[0] + 1, int(module.padding[0])
            yield Layer(kernel, module.stride[0], padding, padding)
        elif isinstance(module, nn.ConvTranspose1d):
            padding = int(module.padding[0])
            right = padding - module.output_padding[0]
            yield Layer(module.kernel_size[0], module.stride[0], padding, right, is_upsampling=True)
        elif isinstance(module, (nn.GroupNorm, nn.LSTM, nn.MultiheadAttention)):
            raise UserError(
                "a network of this codec is not a stack of convolutions", got=type(module).__name__, expected="none"
            )
        else:
            yield from layers_of(module.children())


def windowed(
    modules: Sequence[nn.Module], *, start: Callable[[torch.Tensor], torch.Tensor] | None = None, steps: int = 1
) -> Windowed:
    """The stage that runs `modules` one after the other, on what `start` makes of each input vector.

    A frame is what the strides make one vector of; with `steps`, so many of these. What a network that grows its input
    leaves off at the end of the last frame is filled with zeros.
    """
    layers = list(layers_of(modules))
    inputs = steps * math.prod(layer.stride for layer in layers if not layer.is_upsampling)
    outputs = steps * math.prod(layer.stride for layer in layers if layer.is_upsampling)

    def run(values: torch.Tensor) -> torch.Tensor:
        wanted = values.shape[2] // inputs * outputs
        values = values if start is None else start(values)
        for module in modules:
            values = module(values)
        return nn.functional.pad(values, (0, wanted - values.shape[2])) if values.shape[2] < wanted else values

    return Windowed(run, reach(layers, inputs, outputs), inputs, outputs)


def to_whole_frames(wave: torch.Tensor, hop_samples: int) -> torch.Tensor:
    """`wave` [1, 1, N] with zeros behind it up to a whole number of frames."""
    return nn.functional.pad(wave, (0, -wave.shape[2] % hop_samples))
