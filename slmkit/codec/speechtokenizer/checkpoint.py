"""Reads SpeechTokenizer's published files: `SpeechTokenizer.pt` with `config.json` beside it, or a file of its trainer.

Keys are kept as published, with weight norm folded, and of the codebooks only those that are used. What serves training
is left out: the projection for distillation, and the moving averages of the codebooks.

Invariant: what `read` returns has the keys and shapes of `folded_layout(layout(config, streams))`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from slmkit.codec.added import Added, Source
from slmkit.codec.hf.pretrained import Few, Rate, Ratios, Size
from slmkit.codec.lstm import lstm_layout
from slmkit.codec.weights import Layout, check_layout, fold, normed_layout
from slmkit.config.load import Config, from_dict, to_dict
from slmkit.errors import UserError

TRAINING_ONLY = re.compile(r"transform\.|quantizer\.vq\.layers\.\d+\._codebook\.(inited|cluster_size|embed_avg)$")
KERNEL = 7  # taps of the first and the last convolutions
RESIDUAL_KERNEL = 3


class SpeechTokenizerConfig(Config):
    """Sizes of the network. The defaults are those of the published model."""

    n_filters: Size = Field(default=64, description="channels of the encoder's first layer")
    strides: Ratios = Field(default=(8, 5, 4, 2), description="strides of the decoder; the encoder's are turned round")
    dimension: Size = Field(default=1024, description="width of the latents")
    bidirectional: Literal[True] = Field(default=True, description="whether the encoder's LSTM goes both ways")
    residual_kernel_size: Literal[3] = Field(default=3, description="taps of the residual units")
    n_residual_layers: Literal[1] = Field(default=1, description="residual units of a stage")
    lstm_layers: Few = Field(default=2, description="layers of each LSTM")
    activation: Literal["ELU"] = Field(default="ELU", description="activation")
    codebook_size: Size = Field(default=1024, description="entries of a codebook")
    n_q: Few = Field(default=8, description="codebooks")
    sample_rate: Rate = Field(default=16000, description="samples per second")

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def widest(self) -> int:
        """Channels of the LSTMs."""
        return self.n_filters * 2 ** len(self.strides)


def read(source: Source) -> Added | None:
    """The codec in `source`, None where it is not SpeechTokenizer.

    Raises UserError where it is a damaged one, or one with another activation.
    """
    if "model_type" in source.config:
        return None
    state = source.weights
    if isinstance(state.get("generator"), dict):
        state = state["generator"]
    if not any(re.fullmatch(r"encoder\.model\.\d+\.lstm\.weight_ih_l0_reverse", str(key)) for key in state):
        return None
    wrong = f"{source.weights_file} does not hold SpeechTokenizer"
    fields = SpeechTokenizerConfig.model_fields
    given = {name: value for name, value in source.config.items() if name in fields}
    config = from_dict(SpeechTokenizerConfig, given, f"{source.directory / 'config.json'}: not SpeechTokenizer")
    check_trained(state, config.n_q, wrong)
    kept = {key: value for key, value in state.items() if not TRAINING_ONLY.match(str(key))}
    folded = fold(check_layout(kept, layout(config, config.n_q), wrong))
    streams = source.chosen_streams(config.n_q)
    unused = tuple(codebook_key(i) for i in range(streams, config.n_q))
    weights = {key: value for key, value in folded.items() if key not in unused}
    return Added(streams=streams, config=to_dict(config), weights=weights, licence=source.licence)


def check_trained(state: Mapping[str, Any], num_codebooks: int, wrong: str) -> None:
    """Raise UserError where a codebook was never fitted to data."""
    for i in range(num_codebooks):
        inited = state.get(f"quantizer.vq.layers.{i}._codebook.inited")
        if isinstance(inited, torch.Tensor) and not inited.all():
            raise UserError(f"{wrong}: codebook {i} was never trained", got="inited 0", expected="inited 1")


def codebook_key(i: int) -> str:
    return f"quantizer.vq.layers.{i}._codebook.embed"


def layout(config: SpeechTokenizerConfig, num_codebooks: int) -> Layout:
    """Shape by published key, of what is needed."""
    shapes: dict[str, tuple[int, ...]] = {}

    def normed(key: str, weight: tuple[int, ...], bias: int) -> None:
        shapes.update(normed_layout(key, weight, bias))

    def conv(key: str, c_in: int, c_out: int, kernel: int) -> None:
        normed(f"{key}.conv.conv", (c_out, c_in, kernel), c_out)

    def residual(key: str, channels: int) -> None:
        conv(f"{key}.block.1", channels, channels // 2, RESIDUAL_KERNEL)
        conv(f"{key}.block.3", channels // 2, channels, 1)
        conv(f"{key}.shortcut", channels, channels, 1)

    depth, widest = len(config.strides), config.widest
    conv("encoder.model.0", 1, config.n_filters, KERNEL)
    for i, stride in enumerate(reversed(config.strides)):
        channels, at = config.n_filters * 2**i, 3 * i
        residual(f"encoder.model.{at + 1}", channels)
        conv(f"encoder.model.{at + 3}", channels, 2 * channels, 2 * stride)
    lstms = {"encoder.model": (3 * depth + 1, True), "decoder.model": (1, False)}
    for part, (at, both_ways) in lstms.items():
        for name, shape in lstm_layout(widest, widest, config.lstm_layers, both_ways=both_ways).items():
            shapes[f"{part}.{at}.lstm.{name}"] = shape
    conv(f"encoder.model.{3 * depth + 3}", 2 * widest, config.dimension, KERNEL)
    conv("decoder.model.0", config.dimension, widest, KERNEL)
    for i, stride in enumerate(config.strides):
        channels, at = widest // 2 ** (i + 1), 3 * i
        normed(f"decoder.model.{at + 3}.convtr.convtr", (2 * channels, channels, 2 * stride), channels)
        residual(f"decoder.model.{at + 4}", channels)
    conv(f"decoder.model.{3 * depth + 3}", config.n_filters, 1, KERNEL)
    for i in range(num_codebooks):
        shapes[codebook_key(i)] = (config.codebook_size, config.dimension)
    return shapes
