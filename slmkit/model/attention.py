"""Attention of training and of reading a prompt: causal, never across an utterance border.

Utterances lie back to back in one row of N positions. Each attends to itself alone, so the cost is the sum of the
squares of the utterances, not the square of the row, and no mask is ever built. `packing` tells training (given) from
decoding (absent). `packed_attention` serves every architecture through transformers' attention interface.

Kernels: on CUDA in half precision what `kernels.py` finds; everywhere else scaled_dot_product_attention, one call per
utterance, which is exact.

Shapes: B batch (1 when packed), H query heads, J key-value heads, Q queries, K keys, E head width, N positions of a
packed row, U utterances.

Invariant: the output at a position depends on its own utterance up to that position, whatever lies beside it.

Example:
    output, _ = packed_attention(module, query, key, value, None, scaling=0.125, packing=Packing(cu_seqlens, N))
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from slmkit.model.architecture import does_not_fit
from slmkit.model.kernels import packed_kernel

# What transformers passes to an attention function where the result is not that of plain causal attention.
OTHER_ATTENTION = ("sliding_window", "softcap", "s_aux", "position_bias")
HALF_TYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the decoder layers are run over packed utterances. The losses are the same in every case, to rounding."""

    compiled: bool = False  # by torch.compile
    recomputed: bool = False  # activations are computed again in the backward pass, in place of being kept


@dataclass(frozen=True)
class Packing:
    """Where the utterances of a row begin and end, and how the layers are run over them."""

    cu_seqlens: torch.Tensor  # int32 [U + 1], first 0, last N
    num_positions: int  # N; no utterance is longer
    known_lengths: tuple[int, ...] | None = None  # positions of each utterance, where the host knows them
    execution: Execution = Execution()

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Positions of each utterance, on the host; unless they are known, the device is waited for."""
        known = self.known_lengths
        return torch.diff(self.cu_seqlens).tolist() if known is None else list(known)

    @property
    def longest(self) -> int:
        """No utterance is longer. A kernel starts work for so many positions of every utterance, there or not; so where
        lengths are known this is less than twice the longest, a power of two, for few different values."""
        known = self.known_lengths
        return self.num_positions if known is None else min(self.num_positions, 1 << (max(known) - 1).bit_length())


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    packing: Packing | None = None,
    attend: Callable[..., torch.Tensor] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [B, Q, H, E] of query [B, H, Q, E], key and value [B, J, K, E], float.

    With `packing` B is 1 and Q = K = N. Without, the queries are the last Q of the K keys unless `attention_mask`
    [B, 1, Q, K] says which keys each query sees: bool, or float that is added to the scores. `attend`, in place of
    `packing`: what gives the output [N, H, E] of query [N, H, E], key and value [N, J, E], and the scaling. Raises
    UserError where `options` asks for another attention, such as one with a window.
    """
    check_plain(module, options)
    if attend is not None:
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]
        return attend(*rows, scaling)[None], None
    if packing is None:
        return _attend_cached(query, key, value, attention_mask, scaling), None
    on_gpu = query.is_cuda and query.dtype in HALF_TYPES and not dropout
    kernel = packed_kernel(query.shape[-1]) if on_gpu else None
    if kernel is None:
        return attend_by_utterance(query, key, value, packing.lengths, scaling, dropout), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return kernel.attend(q, k, v, packing.cu_seqlens, packing.longest, scaling)[None], None


def attend_by_utterance(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention output [1, N, H, E] of query [1, H, N, E], key and value [1, J, N, E], one utterance after the other.

    `lengths`: positions of each utterance, N together.
    """
    key, value = _per_query_head(query, key), _per_query_head(query, value)
    pieces = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout) for q, k, v in pieces
    ]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)


def check_plain(module: Any, options: Mapping[str, Any]) -> None:
    """Raise UserError where transformers asks an attention function for more than causal attention."""
    asked = [name for name in OTHER_ATTENTION if options.get(name) is not None]
    if asked:
        raise does_not_fit(module.config, f"its attention has {', '.join(asked)}")


def _attend_cached(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    batch, heads, num_queries, width = query.shape
    num_keys = key.shape[2]
    if num_queries == 1:  # the query heads that share keys stand in for queries: no copies of the cache
        shared = query.reshape(batch, key.shape[1], -1, width)
        output = F.scaled_dot_product_attention(shared, key, value, attn_mask=mask, scale=scaling)
        return output.reshape(batch, 1, heads, width)
    whole = mask is None and num_queries == num_keys
    if mask is None and not whole:
        visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
        mask = visible.tril(num_keys - num_queries)
    key, value = _per_query_head(query, key), _per_query_head(query, value)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=whole, scale=scaling)
    return output.transpose(1, 2)


def _per_query_head(query: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Keys or values [B, J, K, E] repeated to [B, H, K, E]."""
    return shared.repeat_interleave(query.shape[1] // shared.shape[1], dim=1)
