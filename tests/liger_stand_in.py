"""liger-kernel's functions in plain torch, by the signatures of its version 0.8, for machines without a GPU."""

import types
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F

NAMES = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.functional")
ROPE = "liger_kernel.transformers.rope"


def stand_in(counted: Counter[str]) -> dict[str, types.ModuleType]:
    """Modules by name, for `sys.modules`; `counted` is told of every call."""

    def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
        counted["norm"] += 1
        assert (offset, casting_mode, in_place) == (0.0, "llama", False)
        wide = X.float()
        return W * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(X.dtype)

    def liger_swiglu(a, b):
        counted["swiglu"] += 1
        return F.silu(a) * b

    def liger_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        counted["rotation"] += 1
        assert (position_ids, unsqueeze_dim) == (None, 1)
        cos, sin = cos[:, None], sin[:, None]
        turned = [torch.cat([-x.chunk(2, dim=-1)[1], x.chunk(2, dim=-1)[0]], dim=-1) for x in (q, k)]
        return q * cos + turned[0] * sin, k * cos + turned[1] * sin

    modules: dict[str, Any] = {name: types.ModuleType(name) for name in (*NAMES, ROPE)}
    functional, rope = modules["liger_kernel.transformers.functional"], modules[ROPE]
    functional.liger_rms_norm, functional.liger_swiglu = liger_rms_norm, liger_swiglu
    rope.liger_rotary_pos_emb = liger_rotary_pos_emb
    return modules
