"""The kernels for attention over packed utterances on a GPU in half precision, and which of them serves.

The first of these that is installed and fits:

1. flash-attn 4 (`pip install 'slmkit[flash4]'`), on Hopper and later, for heads of 64, 96 or 128 numbers;
2. flash-attn 2 (`slmkit[flash]`), on Ampere and later, for heads of up to 256 numbers;
3. torch's own kernel for variable lengths, on Ampere and later, for heads of 8, 16, ... 256 numbers.

Layers that are compiled (`compiled.py`) take 2 or 3, which torch.compile sees through. Elsewhere, on a CPU or in
float32, scaled_dot_product_attention serves, one call per utterance (`attention.attend_by_utterance`).

Shapes: N positions of a packed row, U utterances, H query heads, J key-value heads, E head width.

Invariant: all of them compute the same, causal attention within each utterance.

Example:
    kernel = packed_kernel(head_width=64)
    output = kernel.attend(query, key, value, cu_seqlens, len(query), scaling)
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

FLASH_4, FLASH_2, TORCH_VARLEN = "flash-attn 4", "flash-attn 2", "torch varlen"
SDPA = "scaled_dot_product_attention"
FLASH_4_WIDTHS = (64, 96, 128)
FLASH_2_WIDTHS, VARLEN_WIDTHS = range(1, 257), range(8, 257, 8)
AMPERE, HOPPER = (8, 0), (9, 0)  # capabilities of GPUs
USUAL_HEAD_WIDTH = 64  # of Qwen2.5-0.5B, Llama-3.2-1B, SmolLM
# What an installed package may raise that was built for another torch, CUDA or GPU.
BROKEN = (ImportError, OSError, RuntimeError, AttributeError)
# Of query float [N, H, E], key and value [N, J, E], borders int32 [U + 1], the longest an utterance may be, and the
# scale of the scores: output [N, H, E].
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel that is installed here."""

    name: str
    attend: Attend
    is_traced: bool  # torch.compile sees through it
    head_widths: Sequence[int]  # that it serves


def attention_kernel(*, on_cuda: bool, head_width: int = USUAL_HEAD_WIDTH, compiled: bool = False) -> str:
    """Name of what serves packed utterances: on a GPU in half precision, or elsewhere."""
    kernel = packed_kernel(head_width, compiled=compiled) if on_cuda else None
    return SDPA if kernel is None else kernel.name


def packed_kernel(head_width: int, *, compiled: bool = False) -> Kernel | None:
    """The kernel for heads of this width on a GPU in half precision; None where none is installed.

    `compiled`: for layers that are compiled.
    """
    fitting = (
        kernel for kernel in installed() if head_width in kernel.head_widths and (kernel.is_traced or not compiled)
    )
    return next(fitting, None)


@functools.cache
def installed() -> tuple[Kernel, ...]:
    """What can be used here, the best first."""
    found = (_flash_attn_4(), _flash_attn_2(), _torch_varlen())
    return tuple(kernel for kernel in found if kernel is not None)


def _is_before(capability: tuple[int, int]) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() < capability


def _flash_attn_4() -> Kernel | None:
    if _is_before(HOPPER):
        return None
    try:
        from flash_attn.cute import flash_attn_varlen_func
    except BROKEN:
        return None

    return Kernel(
        name=FLASH_4, attend=_by_flash_attn(flash_attn_varlen_func), is_traced=False, head_widths=FLASH_4_WIDTHS
    )


def _flash_attn_2() -> Kernel | None:
    if _is_before(AMPERE):
        return None
    try:
        from flash_attn import flash_attn_varlen_func
    except BROKEN:  # of the package flash_attn there may be version 4 alone, which has another place
        return None

    return Kernel(
        name=FLASH_2, attend=_by_flash_attn(flash_attn_varlen_func), is_traced=True, head_widths=FLASH_2_WIDTHS
    )


def _by_flash_attn(function: Callable[..., Any]) -> Attend:
    """`flash_attn_varlen_func` of any version: its arguments keep their names, not their places."""

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        borders: torch.Tensor,
        longest: int,
        scaling: float,
    ) -> torch.Tensor:
        output = function(
            query,
            key,
            value,
            cu_seqlens_q=borders,
            cu_seqlens_k=borders,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            softmax_scale=scaling,
            causal=True,
        )
        # Early versions of 4 give the logarithms of the sums as well.
        return output[0] if isinstance(output, tuple) else output

    return attend


def _torch_varlen() -> Kernel | None:
    if _is_before(AMPERE):
        return None
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    fixed: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    shares_keys = "enable_gqa" in known
    if shares_keys:
        fixed["enable_gqa"] = True

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        borders: torch.Tensor,
        longest: int,
        scaling: float,
    ) -> torch.Tensor:
        if not shares_keys:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        output = varlen_attn(query, key, value, borders, borders, longest, longest, scale=scaling, **fixed)
        assert isinstance(output, torch.Tensor)
        return output

    return Kernel(name=TORCH_VARLEN, attend=attend, is_traced=True, head_widths=VARLEN_WIDTHS)
