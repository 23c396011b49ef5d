"""Reads BigCodec's published file, `bigcodec.pt`, or a checkpoint of its trainer, which is Lightning's.

The file has no settings: the sizes of the network are those of its tensors. Keys are kept as published, behind
`CodecEnc.` and `generator.`, with weight norm folded; the anti-aliasing filters are all the same, and left out.

Invariant: what `read` returns has the keys and shapes of `folded_layout(layout(config))`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import Field

from slmkit.codec.added import Added, Source
from slmkit.codec.hf.pretrained import Few, Ratios, Size
from slmkit.codec.lstm import lstm_layout
from slmkit.codec.snake import DILATIONS, KERNEL
from slmkit.codec.snake.activation import kaiser_sinc_filter
from slmkit.codec.weights import Layout, check_layout, fold, normed_layout
from slmkit.config.load import Config, from_dict, to_dict
from slmkit.errors import UserError

PARTS = ("CodecEnc", "generator")
LIGHTNING = "model."  # before the part, in a trainer's checkpoint
FILTER = ".filter"
LAST_KERNEL = 3  # of the encoder


class BigCodecConfig(Config):
    """Sizes of the network. The decoder's strides are the encoder's from last to first."""

    width: Size = Field(description="channels of the encoder's first layer")
    strides: Ratios = Field(description="strides of the encoder")
    lstm_layers: Few = Field(description="layers of each LSTM")
    latent: Size = Field(description="width of the latents")
    codebook_size: Size = Field(description="entries of the codebook")
    code_dim: Size = Field(description="width of an entry")

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def widest(self) -> int:
        """Channels of the LSTMs."""
        return self.width * 2 ** len(self.strides)


def read(source: Source) -> Added | None:
    """The codec in `source`, None where it is not BigCodec. Raises UserError where it is a damaged one."""
    if "model_type" in source.config:
        return None
    state = flat_state(source.weights)
    if not state:
        return None
    wrong = f"{source.weights_file} does not hold BigCodec"
    filters = {key: state.pop(key) for key in list(state) if key.endswith(FILTER)}
    check_filters(filters, wrong)
    config = sizes_of(state, wrong)
    weights = fold(check_layout(state, layout(config), wrong))
    return Added(streams=source.chosen_streams(1), config=to_dict(config), weights=weights, licence=source.licence)


def flat_state(found: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both parts, of a published file or of a trainer's; empty where a part is missing."""
    if all(isinstance(found.get(part), dict) for part in PARTS):
        return {f"{part}.{key}": value for part in PARTS for key, value in found[part].items()}
    inner = found.get("state_dict")
    starts = tuple(f"{LIGHTNING}{part}." for part in PARTS)
    named = inner if isinstance(inner, dict) else {}
    state = {str(key).removeprefix(LIGHTNING): named[key] for key in named if str(key).startswith(starts)}
    return state if all(any(key.startswith(part) for key in state) for part in PARTS) else {}


def check_filters(filters: Mapping[str, Any], wrong: str) -> None:
    """Raise UserError where a filter is not the usual one."""
    usual = kaiser_sinc_filter()
    for key, value in filters.items():
        is_usual = isinstance(value, torch.Tensor) and value.shape == usual.shape
        if not is_usual or not torch.allclose(value.float(), usual, atol=1e-5):
            raise UserError(f"{wrong}: its anti-aliasing filters are others", got=key)


def sizes_of(state: Mapping[str, Any], wrong: str) -> BigCodecConfig:
    """The sizes that the tensors have. Raises UserError where they have none."""

    def shape(key: str, num_axes: int) -> tuple[int, ...]:
        value = state.get(key)
        if not isinstance(value, torch.Tensor) or value.ndim != num_axes:
            raise UserError(f"{wrong}: {key} is missing, or no tensor of {num_axes} axes")
        return tuple(value.shape)

    stages = range(1, 1 + sum(f"CodecEnc.block.{i}.block.4.weight_v" in state for i in range(1, 100)))
    after = f"CodecEnc.block.{len(stages) + 1}.lstm.weight_hh_l"
    codebook = shape("generator.quantizer.layers.0._codebook.weight", 2)
    sizes = {
        "width": shape("CodecEnc.block.0.weight_v", 3)[0],
        "strides": tuple(shape(f"CodecEnc.block.{i}.block.4.weight_v", 3)[2] // 2 for i in stages),
        "lstm_layers": sum(f"{after}{i}" in state for i in range(100)),
        "latent": shape("generator.model.0.weight_v", 3)[1],
        "codebook_size": codebook[0],
        "code_dim": codebook[1],
    }
    return from_dict(BigCodecConfig, sizes, wrong)


def layout(config: BigCodecConfig) -> Layout:
    """Shape by published key, without the filters."""
    shapes: dict[str, tuple[int, ...]] = {}

    def normed(key: str, weight: tuple[int, ...], bias: int) -> None:
        shapes.update(normed_layout(key, weight, bias))

    def activation(key: str, channels: int) -> None:
        shapes.update({f"{key}.act.alpha": (channels,), f"{key}.act.beta": (channels,)})

    def conv(key: str, c_in: int, c_out: int, kernel: int) -> None:
        normed(key, (c_out, c_in, kernel), c_out)

    def residuals(key: str, first: int, channels: int) -> None:
        for i in range(first, first + len(DILATIONS)):
            activation(f"{key}.block.{i}.block.0", channels)
            conv(f"{key}.block.{i}.block.1", channels, channels, KERNEL)
            activation(f"{key}.block.{i}.block.2", channels)
            conv(f"{key}.block.{i}.block.3", channels, channels, 1)

    def lstm(key: str) -> None:
        for name, shape in lstm_layout(config.widest, config.widest, config.lstm_layers).items():
            shapes[f"{key}.lstm.{name}"] = shape

    depth = len(config.strides)
    conv("CodecEnc.block.0", 1, config.width, KERNEL)
    for i, stride, channels in _stages(config):
        key = f"CodecEnc.block.{1 + i}"
        residuals(key, 0, channels)
        activation(f"{key}.block.3", channels)
        conv(f"{key}.block.4", channels, 2 * channels, 2 * stride)
    lstm(f"CodecEnc.block.{depth + 1}")
    activation(f"CodecEnc.block.{depth + 2}", config.widest)
    conv(f"CodecEnc.block.{depth + 3}", config.widest, config.latent, LAST_KERNEL)

    quantizer = "generator.quantizer.layers.0"
    normed(f"{quantizer}.in_proj", (config.code_dim, config.latent), config.code_dim)
    normed(f"{quantizer}.out_proj", (config.latent, config.code_dim), config.latent)
    shapes[f"{quantizer}._codebook.weight"] = (config.codebook_size, config.code_dim)

    conv("generator.model.0", config.latent, config.widest, KERNEL)
    lstm("generator.model.1")
    for i, stride, channels in _stages(config):
        key = f"generator.model.{1 + depth - i}"
        activation(f"{key}.block.0", 2 * channels)
        normed(f"{key}.block.1", (2 * channels, channels, 2 * stride), channels)
        residuals(key, 2, channels)
    activation(f"generator.model.{depth + 2}", config.width)
    conv(f"generator.model.{depth + 3}", config.width, 1, KERNEL)
    return shapes


def _stages(config: BigCodecConfig) -> Iterator[tuple[int, int, int]]:
    """Number, stride and channels of the encoder's stages."""
    for i, stride in enumerate(config.strides):
        yield i, stride, config.width * 2**i
