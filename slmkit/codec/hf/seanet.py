"""SEANet, the convolutional network of EnCodec and WavTokenizer, as stages: convolutions, an LSTM, convolutions.

Shapes: C channels, t vectors in time.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from slmkit.codec.hf.convolutions import windowed
from slmkit.codec.hf.pretrained import Few, NetworkFile, PadMode, Rate, Size
from slmkit.codec.stages import Recurrent, Stage
from slmkit.errors import UserError


class SeanetFile(NetworkFile):
    """The settings that EnCodec and WavTokenizer share; defaults are those of transformers."""

    sampling_rate: Rate = Field(default=24000, description="samples per second")
    audio_channels: Literal[1] = Field(default=1, description="channels of the audio")
    norm_type: Literal["weight_norm"] = Field(default="weight_norm", description="normalization")
    num_filters: Size = Field(default=32, description="channels of the first convolution")
    pad_mode: PadMode = Field(default="reflect", description="padding of convolutions")
    num_residual_layers: Few = Field(default=1, description="residual layers of a block")
    dilation_growth_rate: Few = Field(default=2, description="growth of the dilation")
    compress: Few = Field(default=2, description="of the width in residual layers")
    kernel_size: Few = Field(default=7, description="first kernel")
    last_kernel_size: Few = Field(default=7, description="last kernel")
    residual_kernel_size: Few = Field(default=3, description="kernel of a residual layer")
    num_lstm_layers: Few = Field(default=2, description="layers of the LSTM")


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
