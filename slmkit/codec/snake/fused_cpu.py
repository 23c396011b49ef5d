"""The anti-aliased activation in one pass over memory, for CPUs, by the C kernel beside this file.

Its plain twin is `activation.Activation`, which spreads the same arithmetic over ten passes and takes several times as
long. `fused.py` is the same for GPUs.

Shapes: B utterances, C channels, N positions.

Invariant (law): a value depends on its own utterance's positions alone, and is added up in one fixed order; it is the
same to the bit in every batch, place and padding, with any number of threads.

Example:
    if works():
        out = activate(x, alpha, height, up_taps, down_taps, counts=None, margin=3)
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from slmkit.native import load_library

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math")  # with which compilers make vectors of its loops


def activate(
    x: torch.Tensor,
    alpha: torch.Tensor,
    height: torch.Tensor,
    up_taps: torch.Tensor,
    down_taps: torch.Tensor,
    counts: torch.Tensor | None,
    margin: int,
) -> torch.Tensor:
    """float32 [B, C, N] -> [B, C, N + 2 * margin], zeros wherever no utterance is.

    alpha, height: float32 [C], of y + height * sin(y)^2 with y = alpha * x, divided by alpha at the end.
    up_taps, down_taps: float32 [12]. counts: int64 [B], positions of each utterance; None when all have N.
    """
    parameters = [part.contiguous() for part in (alpha, height, up_taps, down_taps)]
    assert all(part.dtype == torch.float32 and part.device.type == "cpu" for part in (x, *parameters))
    assert counts is None or counts.dtype == torch.int64
    kernel = _kernel()
    assert kernel is not None
    batch, channels, length = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    out = x.new_empty(batch, channels, length + 2 * margin)
    kernel(
        *(part.data_ptr() for part in (x, out, *parameters)),
        None if counts is None else counts.data_ptr(),
        *(batch, channels, length, margin, x.stride(0), x.stride(1)),
        torch.get_num_threads(),
    )
    return out


def works() -> bool:
    """Whether the kernel can be compiled here; says once where it cannot."""
    return _kernel() is not None


@functools.cache
def _kernel() -> Callable[..., None] | None:
    library = load_library(SOURCE, *FLAGS, otherwise="FACodec and BigCodec are slower")
    if library is None:
        return None
    library.activate.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_long] * 6 + [ctypes.c_int]
    library.activate.restype = None
    return library.activate
