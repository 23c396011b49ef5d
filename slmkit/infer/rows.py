"""Arithmetic on rows of which each gets the same bits wherever it stands and whatever the others hold.

A library's matrix product may round a row differently by its place (MKL does where a thread gets fewer than four of
them); so the number of rows is the first that a trial with the weights and threads at hand finds free of that
(`rows_needed`). Activations are computed row by row on a CPU. All else is exact in its order whatever the rows: sums
along a row, additions, products, roots, tables.

`step_layer` makes of a decoder layer one that computes in this way: the same modules in the same places, sharing their
weights, but with other linear layers, activations and attention.

Shapes: R rows, D width, C classes, S positions.

Example:
    rows = Rows(fastest_product(weight), one_by_one=True)
    layers = [step_layer(layer, rows, attention="own_attention") for layer in model.backbone.layers]
"""

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from slmkit.errors import UserError
from slmkit.infer.product import Product

ROW_BLOCK = 4  # rows that the kernels of matrix products take at a time


class Rows:
    """Arithmetic on rows [R, D] that treats all alike; what `RowArithmetic` of the heads asks for."""

    def __init__(self, product: Product, *, one_by_one: bool) -> None:
        self.product, self.one_by_one = product, one_by_one

    def linear(self, module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        out = self.product(rows, module.weight)
        return out if module.bias is None else out + module.bias

    def activation(self, function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """On a CPU row by row: its kernels take the end of a piece of memory another way."""
        if not self.one_by_one or rows.shape[0] == 1:
            return function(rows)
        return torch.stack([function(row) for row in rows.unbind()])

    def chain(self, modules: Iterable[nn.Module], rows: torch.Tensor) -> torch.Tensor:
        for module in modules:
            rows = self.linear(module, rows) if isinstance(module, nn.Linear) else self.activation(module, rows)
        return rows


class RowLinear(nn.Linear):
    """A linear layer that treats all rows alike, with the very parameters of another."""

    def __init__(self, linear: nn.Linear, rows: Rows) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias, self._rows = linear.weight, linear.bias, rows

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """float [R, S, C] of float [R, S, D]. At once: a module's own call looks for hooks, which takes its time."""
        return self._rows.linear(self, input.reshape(-1, input.shape[-1])).view(*input.shape[:-1], -1)


class RowActivation(nn.Module):
    """An element-wise function that treats all rows alike."""

    def __init__(self, function: nn.Module, rows: Rows) -> None:
        super().__init__()
        self._function, self._rows = function, rows

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """float [R, S, D] of float [R, S, D]."""
        return self._rows.activation(self._function, input.reshape(-1, input.shape[-1])).view(input.shape)


def step_layer(layer: nn.Module, rows: Rows, *, attention: str) -> nn.Module:
    """A decoder layer that shares all weights of `layer`, whose rows are all alike.

    Its attention is the one that is registered with transformers as `attention`. Norms stay as they are: they sum along
    a row. Everything else without weights counts as an activation.
    """
    if isinstance(layer, nn.Linear):
        return RowLinear(layer, rows)
    children = list(layer.named_children())
    if not children and not list(layer.parameters()):
        return layer if isinstance(layer, (nn.Identity, nn.Dropout)) else RowActivation(layer, rows)
    twin = copy.copy(layer)
    # `copy` shares the table of children, too; that of the weights is meant to be shared.
    twin._modules = {name: step_layer(child, rows, attention=attention) for name, child in children}
    if isinstance(getattr(twin, "config", None), PreTrainedConfig):
        twin.config = copy.copy(twin.config)
        twin.config._attn_implementation = attention  # type: ignore[union-attr]
    return twin


def rows_needed(weights: Iterable[torch.Tensor], num_slots: int, product: Product = F.linear) -> int:
    """The least number of rows, at least `num_slots`, at which products with `weights` [C, D] round all rows alike.

    Raises UserError when none is found among the sizes that kernels like. One row needs no trial.
    """
    if num_slots == 1:
        return 1
    threads = torch.get_num_threads()
    blocks = [ROW_BLOCK * 2**i for i in range(10) if 2**i < 2 * threads]
    sizes = sorted({num_slots, *(-(-num_slots // block) * block for block in blocks)})
    generator = torch.Generator().manual_seed(0)
    kept = [(weight, torch.randn(weight.shape[1], generator=generator).to(weight)) for weight in weights]
    for size in sizes:
        products = (product(row.expand(size, -1).contiguous(), weight) for weight, row in kept)
        if all(bool((rows == rows[:1]).all()) for rows in products):
            return size
    raise UserError(
        f"on this machine a matrix product depends on the position of the row, at {', '.join(map(str, sizes))} rows",
        next_step="use one slot, or another number of threads",
    )
