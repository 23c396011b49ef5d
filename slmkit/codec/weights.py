"""Weights by key: seen from a prefix, held against the layout of a network, weight norm folded.

Invariant: what `check_layout` returns has exactly the keys and shapes of the layout, float32 and finite.

Example:
    layout = {"first.weight_g": (8, 1, 1), "first.weight_v": (8, 1, 7)}
    weights = Weights(fold(check_layout(state, layout, "model.pt does not hold this codec")))
    (weights / "first")["weight"]  # [8, 1, 7]
"""

from collections.abc import Mapping
from typing import Any

import torch

from slmkit.errors import UserError

MAX_NAMED = 20  # keys listed in one error
Layout = Mapping[str, tuple[int, ...]]  # shape by key


class Weights:
    """Tensors by key, seen from a prefix."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> None:
        self._tensors, self._prefix = tensors, prefix

    def __truediv__(self, name: str | int) -> "Weights":
        return Weights(self._tensors, f"{self._prefix}{name}.")

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._prefix + name]

    def get(self, name: str, otherwise: torch.Tensor) -> torch.Tensor:
        """`otherwise` where there is none."""
        return self._tensors.get(self._prefix + name, otherwise)


def check_layout(state: Mapping[str, Any], layout: Layout, wrong: str, next_step: str = "") -> dict[str, torch.Tensor]:
    """The tensors of `state`, float32.

    Raises UserError, which begins with `wrong` and names every key that is missing, not in `layout`, of another shape,
    or not finite.
    """
    problems = [f"missing: {key}" for key in layout if key not in state]
    problems += [f"unknown: {key}" for key in state if key not in layout]
    problems += [why for key in state if key in layout for why in complaints(key, state[key], layout[key])]
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems[:MAX_NAMED])
        more = f"\n  - and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise UserError(f"{wrong}:{listed}{more}", next_step=next_step)
    return {key: state[key].float() for key in layout}


def complaints(key: str, value: Any, shape: tuple[int, ...]) -> list[str]:
    """What is wrong with one tensor, in words."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return [f"not a tensor of real numbers: {key}"]
    if tuple(value.shape) != shape:
        return [f"wrong shape: {key} is {list(value.shape)}, expected {list(shape)}"]
    if not value.isfinite().all():
        return [f"not finite: {key}"]
    return []


def plain_name(name: str) -> str:
    """What older versions of torch call a half of a weight with weight norm, of that or of the newer name."""
    name = name.replace(".parametrizations.weight.original0", ".weight_g")
    return name.replace(".parametrizations.weight.original1", ".weight_v")


def normed_layout(key: str, weight: tuple[int, ...], bias: int) -> dict[str, tuple[int, ...]]:
    """The layout of one layer with weight norm."""
    halves = {f"{key}.weight_v": weight, f"{key}.weight_g": (weight[0], *(1 for _ in weight[1:]))}
    return {f"{key}.bias": (bias,), **halves}


def fold(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` with each pair `weight_g`, `weight_v` made one `weight` = g * v / |v|, norms per first index."""
    folded = {}
    for key, value in state.items():
        if key.endswith("weight_v"):
            stem = key.removesuffix("_v")
            norm = value.norm(dim=tuple(range(1, value.dim())), keepdim=True)
            folded[stem] = value * (state[f"{stem}_g"] / norm)
        elif not key.endswith("weight_g"):
            folded[key] = value
    return folded


def folded_layout(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The layout of what `fold` makes."""
    kept = {key: shape for key, shape in layout.items() if not key.endswith("weight_g")}
    return {key.removesuffix("_v") if key.endswith("weight_v") else key: shape for key, shape in kept.items()}
