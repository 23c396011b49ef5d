"""LSTMs over frames that carry their state from piece to piece, for one utterance at a time.

A step of one utterance is a matrix times a vector, so its speed is that of reading the weights from memory. torch's own
LSTM on a CPU takes a product of two matrices there, which reads them at about two thirds of the speed; so the steps are
written out. On other devices torch's is used.

Shapes: C inputs, H hidden, t frames; B is 1 throughout.

Invariant: where pieces begin and end does not change the result but for the order in which kernels add.

Example:
    lstm = Lstm(weights / "lstm", num_layers=2)
    first, state = lstm(x[..., :100], None)  # [1, C, 100] -> [1, H, 100]
    second, _ = lstm(x[..., 100:], state)
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from slmkit.codec.stages import Recurrent
from slmkit.codec.weights import Layout, Weights

State = Sequence[tuple[torch.Tensor, torch.Tensor]]  # of each layer: output and cell [1, 1, H]


class Lstm:
    """Layers of one direction, each from left to right."""

    def __init__(self, weights: Weights, num_layers: int, *, first: int = 0, suffix: str = "") -> None:
        """`weights` by torch's names: `weight_ih_l0`, ... `first`: the number of the first layer."""
        self._layers = [_Layer(weights, f"_l{first + i}{suffix}") for i in range(num_layers)]

    def __call__(self, x: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """[1, C, t] and the state before it (None: zeros) -> [1, H, t] and the state after it."""
        rows, after = x[0].T, []
        for i, layer in enumerate(self._layers):
            rows, last = layer(rows, None if state is None else state[i])
            after.append(last)
        return rows.T[None], after


class _Layer:
    """One layer: rows [t, C] -> [t, H]."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._given = [weights[f"{kind}{name}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        self._hidden = self._given[1].shape[1]

    def __call__(
        self, rows: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        zeros = rows.new_zeros(1, 1, self._hidden)
        before = (zeros, zeros) if state is None else state
        return self.stepwise(rows, before) if rows.device.type == "cpu" else self.at_once(rows, before)

    def at_once(
        self, rows: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """By torch's own LSTM."""
        found, (hidden, cell) = self._torchs(rows[:, None], state)
        return found[:, 0], (hidden, cell)

    @functools.cached_property
    def _torchs(self) -> torch.nn.LSTM:
        """torch's own, with the weights in one block of memory, as GPUs want them."""
        from_input = self._given[0]
        device = from_input.device
        with torch.inference_mode(mode=False):
            module = torch.nn.LSTM(from_input.shape[1], self._hidden, device="meta").to_empty(device=device)
            module.load_state_dict(dict(zip(module.state_dict(), self._given, strict=True)))
            module.requires_grad_(False).flatten_parameters()
        return module

    def stepwise(
        self, rows: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Frame by frame. The gates of a frame lie in torch's order: input, forget, cell, output."""
        from_input, from_hidden, *biases = self._given
        gates = F.linear(rows, from_input, biases[0] + biases[1])
        hidden, cell = state[0].flatten(), state[1].flatten().clone()
        out = rows.new_empty(len(rows), self._hidden)
        for row, into in zip(gates.unbind(), out.unbind(), strict=True):
            row += torch.mv(from_hidden, hidden)
            let_in, keep, new, show = row.view(4, -1).unbind()
            cell.mul_(keep.sigmoid_()).addcmul_(let_in.sigmoid_(), new.tanh_())
            hidden = torch.mul(cell.tanh(), show.sigmoid_(), out=into)
        return out, (hidden.clone().view(1, 1, -1), cell.view(1, 1, -1))


def with_skip(lstm: Lstm) -> Recurrent:
    """The stage that adds to its input what the LSTM makes of it."""

    def run(x: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        found, state = lstm(x, state)
        return x + found, state

    return Recurrent(run)


def lstm_layout(inputs: int, hidden: int, num_layers: int, *, both_ways: bool = False) -> Layout:
    """Shape by key, as torch names the weights."""
    suffixes = ("", "_reverse") if both_ways else ("",)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        width = inputs if layer == 0 else hidden * len(suffixes)
        for suffix in suffixes:
            name = f"_l{layer}{suffix}"
            shapes[f"weight_ih{name}"], shapes[f"weight_hh{name}"] = (4 * hidden, width), (4 * hidden, hidden)
            shapes[f"bias_ih{name}"] = shapes[f"bias_hh{name}"] = (4 * hidden,)
    return shapes
