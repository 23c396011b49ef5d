"""SEANet, the convolutional network of EnCodec and WavTokenizer, as stages: convolutions, an LSTM, convolutions.

Shapes: C channels, t vectors in time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from slmkit.codec.hf.convolutions import windowed
from slmkit.codec.stages import Recurrent, Stage
from slmkit.errors import UserError


def seanet_stages(
    layers: Sequence[nn.Module], *, start: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> tuple[Stage, ...]:
    """The stages of a network whose `layers` hold one LSTM with a residual connection around it.

    start: what makes vectors of the input. Raises UserError when there is no LSTM.
    """
    places = [place for place, layer in enumerate(layers) if hasattr(layer, "lstm")]
    if len(places) != 1:
        raise UserError("the codec's network is not a SEANet", got=f"{len(places)} LSTMs", expected="1")
    before, after = layers[: places[0]], layers[places[0] + 1 :]
    lstm: Any = layers[places[0]].lstm

    def recurrent(values: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:  # [1, C, t]
        steps = values.permute(2, 0, 1)
        found, state = lstm(steps, state)
        return (found + steps).permute(1, 2, 0), state

    return windowed(before, start=start), Recurrent(recurrent), windowed(after)
