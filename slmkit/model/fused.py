"""Norms, rotary positions and SwiGLU of the decoder layers by the Triton kernels of liger-kernel.

Each replaces several small operations by one kernel, which reads and writes its numbers once. They are put into the
modules of one model, by giving these a class of their own, derived from theirs; classes and functions of transformers
are left as they are. So names of weights stay, copies are right, and a module in evaluation mode computes what it
always did: only training is fused.

Known are the architectures in `architecture.TESTED`, whose norm is RMSNorm as Llama has it (the factor is applied
behind the rounding to half precision), whose rotation is that of Llama and whose layers are SwiGLU.

Invariant: outputs and gradients are those of transformers' modules, to rounding.

Example:
    fuse(model, liger_kernels())
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from slmkit.errors import UserError
from slmkit.model.architecture import TESTED, attention_of
from slmkit.model.kernels import BROKEN
from slmkit.model.slm import SpeechLM

ROTATION = "apply_rotary_pos_emb"  # transformers' name in the files of all these architectures
SILU = ("silu", "swish")  # activations by transformers' names
OFF = "set fused_kernels to false"


class FusedKernels(NamedTuple):
    """The functions of liger-kernel, by its own signatures."""

    rms_norm: Callable[..., torch.Tensor]  # (x [..., D], weight [D], eps, offset, casting_mode, in_place)
    rotation: Callable[..., tuple[torch.Tensor, torch.Tensor]]  # (query, key, cos, sin), as transformers' own
    swiglu: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (gate, up): silu(gate) * up


def liger_kernels(*, on_gpu: bool | None = None) -> FusedKernels:
    """The kernels, for the GPU that torch sees unless `on_gpu` says otherwise.

    Raises UserError where there is no GPU, or liger-kernel is missing or cannot be loaded.
    """
    if not (torch.cuda.is_available() if on_gpu is None else on_gpu):
        raise UserError("fused_kernels: the kernels of liger-kernel run on a GPU", got="no GPU", next_step=OFF)
    try:
        from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu
        from liger_kernel.transformers.rope import liger_rotary_pos_emb
    except BROKEN as error:
        raise UserError(
            "fused_kernels: liger-kernel cannot be loaded",
            got=f"{type(error).__name__}: {error}",
            next_step=f"pip install 'slmkit[liger]', or {OFF}",
        ) from error
    return FusedKernels(liger_rms_norm, liger_rotary_pos_emb, liger_swiglu)


def fuse(model: SpeechLM, kernels: FusedKernels) -> None:
    """Let the norms, attentions and SwiGLU layers of `model` compute with `kernels` in training mode.

    Raises UserError for an architecture of which it is not known that they fit.
    """
    config = model.backbone.config
    if config.model_type not in TESTED or config.hidden_act not in SILU:
        raise UserError(
            "fused_kernels: it is not known that they fit this base model",
            got=f"{config.model_type} with the activation {config.hidden_act}",
            expected=f"{', '.join(TESTED)} with SwiGLU",
            next_step=OFF,
        )
    _give_class(model.backbone.norm, _norm_class, kernels.rms_norm)
    for layer in [
        *model.backbone.layers,
        *(layer for head in model.heads for layer in getattr(head, "head_layers", ())),
    ]:
        for module in layer.modules():
            if hasattr(module, "variance_epsilon"):
                _give_class(module, _norm_class, kernels.rms_norm)
        _give_class(layer.mlp, _mlp_class, kernels.swiglu)
        _give_class(attention_of(layer), _attention_class, kernels.rotation)


def _give_class(module: nn.Module, make: Callable[[Any, Any], Any], kernel: Callable[..., Any]) -> None:
    module.__class__ = make(type(module), kernel)


@functools.cache
def _norm_class(kind: Any, rms_norm: Callable[..., torch.Tensor]) -> Any:
    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return kind.forward(self, hidden_states)
        # Not in place: the gradient of the output may be someone else's as well.
        return rms_norm(
            hidden_states, self.weight, self.variance_epsilon, offset=0.0, casting_mode="llama", in_place=False
        )

    return type(f"Fused{kind.__name__}", (kind,), {"forward": forward})


@functools.cache
def _mlp_class(kind: Any, swiglu: Callable[..., torch.Tensor]) -> Any:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return kind.forward(self, x)
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))

    return type(f"Fused{kind.__name__}", (kind,), {"forward": forward})


@functools.cache
def _attention_class(kind: Any, rotation: Callable[..., Any]) -> Any:
    """An attention whose forward is the code of `kind` with another rotation, which it finds by a global name."""
    plain = inspect.unwrap(kind.forward)
    assert ROTATION in plain.__code__.co_names, f"{kind.__name__} rotates in another way"
    names = {**plain.__globals__, ROTATION: rotation}
    fused = types.FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    fused.__kwdefaults__ = plain.__kwdefaults__

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return fused(self, *args, **kwargs) if self.training else kind.forward(self, *args, **kwargs)

    return type(f"Fused{kind.__name__}", (kind,), {"forward": forward})
