"""The anti-aliased activation in one pass over memory, as a Triton kernel for GPUs.

Its plain twin is `activation.Activation`, which spreads the same arithmetic over ten passes. Each program takes a row
(one channel of one utterance) and a run of its positions: it computes the values at twice the rate that the run needs,
three positions beyond it on both sides too, and filters them down. Borders need no copies: an index beyond an
utterance's end is that of its last value.

This file needs triton; nothing imports it where triton is not installed. It knows nothing of weights files or layers.

Shapes: B utterances, C channels, N positions.

Invariant (law): a value depends on its own utterance's positions alone, and is added up in one fixed order; it is the
same to the bit in every batch, place and padding.

Example:
    if works_on(x.device):
        out = activate(x, alpha, height, up_taps, down_taps, counts=None, margin=3)
"""

import functools
import subprocess

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

from slmkit.codec.snake import FILTER_TAPS
from slmkit.log import get_logger

REACH = FILTER_TAPS // 4  # positions to each side of an output that its filters see
LANES = 512  # positions of a program, the two borders included: a power of two, the borders a small part of it
log = get_logger(__name__)


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
    up_taps, down_taps: float32 [12]. counts: int [B], positions of each utterance; None when all have N.
    """
    batch, channels, length = x.shape
    out = x.new_empty(batch, channels, length + 2 * margin)
    runs = triton.cdiv(out.shape[2], LANES - 2 * REACH)
    parameters = [part.contiguous() for part in (alpha, height, up_taps, down_taps)]
    with torch.cuda.device_of(x):
        _kernel[(batch * channels * runs,)](
            *(x, out, *parameters, x if counts is None else counts),
            *(channels, length, margin, runs, *x.stride()),
            ragged=counts is not None,
            lanes=LANES,
            taps=FILTER_TAPS,
            reach=REACH,
        )
    return out


@functools.cache
def works_on(device: torch.device) -> bool:
    """Whether the kernel can be built and run there; says once why not. Triton needs a C compiler at its first run."""
    one, taps = torch.ones(1, device=device), torch.ones(FILTER_TAPS, device=device)
    try:
        activate(one[None, None], one, one, taps, taps, None, 0)
    except (RuntimeError, OSError, subprocess.CalledProcessError, TritonError) as error:
        log.warning("%s: the fused activation of codecs does not run (%s); the slower plain one is used", device, error)
        return False
    return True


# Compiled once for whatever sizes: knowing that some are multiples of 16 would make nothing faster.
@triton.jit(do_not_specialize=["channels", "length", "margin", "runs", "batch_stride", "channel_stride"])
def _kernel(
    x,
    out,
    alpha,
    height,
    up_taps,
    down_taps,
    counts,
    channels,
    length,
    margin,
    runs,
    batch_stride,
    channel_stride,
    stride,
    ragged: tl.constexpr,
    lanes: tl.constexpr,
    taps: tl.constexpr,
    reach: tl.constexpr,
):
    program = tl.program_id(0)
    run, row = program % runs, (program // runs).to(tl.int64)
    utterance, channel = row // channels, row % channels
    count = length
    if ragged:
        count = tl.load(counts + utterance).to(tl.int32)
    lane = tl.arange(0, lanes)
    column = run * (lanes - 2 * reach) - reach + lane
    position = column - margin
    source = x + utterance * batch_stride + channel * channel_stride
    scale, bump = tl.load(alpha + channel), tl.load(height + channel)
    even = _snake(source, stride, 2 * position, count, scale, bump, up_taps, taps)
    odd = _snake(source, stride, 2 * position + 1, count, scale, bump, up_taps, taps)
    total = tl.zeros([lanes], tl.float32)
    for i in tl.static_range(taps // 2):  # output n sees 2 * (n - 3 + i) + 1, then 2 * (n - 2 + i)
        total += tl.load(down_taps + 2 * i) * tl.gather(odd, _near(lane - reach + i, lanes), 0)
        total += tl.load(down_taps + 2 * i + 1) * tl.gather(even, _near(lane - reach + 1 + i, lanes), 0)
    total = tl.where((position >= 0) & (position < count), total / scale, 0.0)
    mine = (lane >= reach) & (lane < lanes - reach) & (column < length + 2 * margin)
    tl.store(out + row * (length + 2 * margin) + column, total, mask=mine)


@triton.jit
def _snake(source, stride, at, count, scale, bump, up_taps, taps: tl.constexpr):
    """y + bump * sin(y)^2 of the values y at positions `at` of twice the rate; beyond the ends, those of the ends."""
    at = tl.minimum(tl.maximum(at, 0), 2 * count - 1)
    is_odd = at % 2
    first = at // 2 - taps // 4 + is_odd
    y = tl.zeros_like(at).to(tl.float32)
    for i in tl.static_range(taps // 2):
        # An even position takes the odd taps, an odd one the even taps, the last tap first.
        tap = tl.where(is_odd == 1, tl.load(up_taps + taps - 2 - 2 * i), tl.load(up_taps + taps - 1 - 2 * i))
        near = tl.minimum(tl.maximum(first + i, 0), count - 1)
        y += 2 * tap * (scale * tl.load(source + near.to(tl.int64) * stride))
    wave = tl.sin(y)
    return y + bump * (wave * wave)


@triton.jit
def _near(lane, lanes: tl.constexpr):
    """Lanes beyond the block are wanted only by lanes that store nothing."""
    return tl.minimum(tl.maximum(lane, 0), lanes - 1)
