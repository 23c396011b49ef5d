"""The decoder layers through torch.compile: one layer is compiled, and the code serves all layers of its kind.

Micro-batches differ in their number of positions N and of utterances U. Both are marked as dynamic, so that the first
micro-batch compiles for all (`tests/model/test_compiled.py` counts): once for training and once for evaluation, for
every kind of layer that the model has (of SmolLM3 two: with and without rotary positions). Layers of the speech heads
are of the backbone's kind.

Every process runs every micro-batch through the compiled code, or none does: it gives the gradients of a layer in
another order than the layer itself, and DeepSpeed sums those that come at the same time.

What is compiled is a function of a layer and its inputs. The modules are left as they are: names of weights, copies,
checkpoints, exports, reading a prompt and decoding know nothing of it. A layer takes part with its weights only, so
that DeepSpeed's ZeRO-1 and ZeRO-2, which look at gradients, fit; ZeRO-3, which puts weights together in hooks of the
modules, does not, and is refused (`train/settings.py`).

Attention is one operator of the compiled graph: a kernel that torch.compile sees through (`kernels.py`), else one of
our own around scaled_dot_product_attention. That has its gradient written out: torch.compile could not follow its loop
over utterances.

This file loads torch's compiler, which takes seconds; it is imported where a layer is to be compiled.

Shapes: D width, N positions of a packed row, U utterances, H query heads, J key-value heads, E head width, S positions
of an utterance.

Example:
    run = compiled_run(position_ids, rotation, packing)
    for layer in layers:
        hidden = run(layer, hidden)
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo import maybe_mark_dynamic
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from slmkit.errors import UserError
from slmkit.model.architecture import attention_of, cache_argument, head_width
from slmkit.model.attention import HALF_TYPES, Packing, attend_by_utterance
from slmkit.model.kernels import Attend, packed_kernel

BACKEND = "inductor"  # of torch.compile; tests take one that needs no compiler


def compiled_run(
    position_ids: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], packing: Packing
) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """What gives the hidden states float [1, N, D] behind a layer, of the layer and those before it.

    position_ids int64 [1, N]; rotation: cosines and sines float [1, N, E or less]. The layers are those of one model,
    and N at least 2. `run` raises UserError where torch.compile cannot make a graph of a layer.
    """
    borders = packing.cu_seqlens
    # How long an utterance can be, as the size of a view: a number would be compiled in.
    bound = borders[:1].expand(max(2, packing.longest))
    position_ids = position_ids.clone()  # no view, in any micro-batch
    for tensor, dimension in ((position_ids, 1), (rotation[0], 1), (rotation[1], 1), (borders, 0), (bound, 0)):
        maybe_mark_dynamic(tensor, dimension)
    call, attend = _compiled_layer(), None

    def run(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        nonlocal attend
        maybe_mark_dynamic(hidden, 1)
        attend = attend or _attend_on(layer, hidden)
        kind: Any = type(layer)
        try:
            return call(layer, hidden, position_ids, *rotation, borders, bound, attend, cache_argument(kind))
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            raise UserError(
                "torch.compile cannot make one graph of a decoder layer",
                got=f"{type(error).__name__}: {str(error)[:1000]}",
                next_step="set compile to false",
            ) from error

    return run


@functools.cache
def _compiled_layer() -> Callable[..., torch.Tensor]:
    # fullgraph: where it cannot, or has compiled too often, it raises an error. Else it would go on without, in this
    # process and perhaps not in others.
    return torch.compile(_layer, backend=BACKEND, fullgraph=True)


def _layer(
    layer: Any,
    hidden: torch.Tensor,
    position_ids: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    borders: torch.Tensor,
    bound: torch.Tensor,
    attend: Attend,
    cache_name: str,
) -> torch.Tensor:
    def attend_packed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        return attend(query, key, value, borders, bound.shape[0], scaling)

    return layer(
        hidden,
        attention_mask=None,
        position_ids=position_ids,
        use_cache=False,
        position_embeddings=(cos, sin),
        attend=attend_packed,
        **{cache_name: None},
    )


def _attend_on(layer: nn.Module, hidden: torch.Tensor) -> Attend:
    """What computes the attention of layers like this one, on the device and in the float type of `hidden`."""
    if not hidden.is_cuda or hidden.dtype not in HALF_TYPES:
        return by_utterance
    kernel = packed_kernel(head_width(attention_of(layer).config), compiled=True)
    return by_utterance if kernel is None else kernel.attend


def by_utterance(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, longest: int, scaling: float
) -> torch.Tensor:
    """Attention of `attention.attend_by_utterance` as one operator, arguments and result as of every kernel."""
    return _attention(query, key, value, borders, scaling)


@torch.library.custom_op("slmkit::packed_attention", mutates_args=())
def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, scaling: float
) -> torch.Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    return attend_by_utterance(q, k, v, torch.diff(borders).tolist(), scaling)[0].contiguous()


@_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, scaling: float
) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("slmkit::packed_attention_backward", mutates_args=())
def _gradients(
    upstream: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, of `upstream`, that of the output.

    With the scores s = scaling q k', the probabilities p = softmax(s) and the output o = p v:
    dv = p' do, dp = do v', ds = p (dp - sum of dp p along the keys), dq = scaling ds k, dk = scaling ds' q.
    """
    given = (query, key, value)
    shared, (num_shared, width) = query.shape[1] // key.shape[1], key.shape[1:]
    found: list[torch.Tensor] = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in given]
    for start, stop in itertools.pairwise(borders.tolist()):
        size = stop - start
        # [J, H / J, S, E], and of keys and values [J, 1, S, E].
        q, do = (
            x[start:stop].float().transpose(0, 1).reshape(num_shared, shared, size, width) for x in (query, upstream)
        )
        k, v = (x[start:stop].float().transpose(0, 1)[:, None] for x in (key, value))
        future = torch.ones(size, size, dtype=torch.bool, device=query.device).triu(1)
        p = (scaling * (q @ k.mT)).masked_fill(future, -torch.inf).softmax(-1)
        dp = do @ v.mT
        ds = scaling * p * (dp - (dp * p).sum(-1, keepdim=True))
        parts = ((ds @ k).flatten(0, 1), (ds.mT @ q).sum(1), (p.mT @ do).sum(1))
        for whole, part in zip(found, parts, strict=True):
            whole[start:stop] = part.transpose(0, 1)
    return found[0], found[1], found[2]


@_gradients.register_fake
def _(
    upstream: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = functools.partial(torch.empty_like, memory_format=torch.contiguous_format)
    return like(query), like(key), like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*_gradients(upstream, *ctx.saved_tensors, ctx.scaling), None, None)


_attention.register_autograd(_backward, setup_context=_keep)
