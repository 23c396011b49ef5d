"""SNAC behind the `Codec` interface.

A frame holds the codes of one code of the first level, since streams here have one rate: 7 streams at 11.7 frames per
second for the 24 kHz model, 15 at 10.4 and 14.4 for those of 32 and 44 kHz. With fewer levels there are 1, 3 or 7.

The models with attention in windows (32 and 44 kHz) look at whole windows, of 4 frames, counted from the start of the
utterance. As published, audio is padded with silence to whole windows before it is encoded.

Example:
    codec = open_codec("codecs/snac_24khz")  # made by `slmkit codec add`
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import Field
from pydantic.types import Strict
from torch import nn

from slmkit.codec.added import Added, Source, identity
from slmkit.codec.base import MAX_LM_STREAMS, CodecSpec, Reach, Stream
from slmkit.codec.fields import reach
from slmkit.codec.hf.convolutions import layers_of
from slmkit.codec.single import SingleCodec
from slmkit.codec.snac.network import (
    HEAD_WIDTH,
    Decoder,
    DecoderBlock,
    Encoder,
    Network,
    Quantizer,
    WindowAttention,
    stream_places,
)
from slmkit.codec.stages import Stage, Windowed
from slmkit.codec.weights import check_layout, fold, plain_name
from slmkit.config.load import Config, from_dict, to_dict
from slmkit.config.values import Flag, Takes
from slmkit.errors import UserError

Width = Annotated[int, Strict(), Ge(1), Le(2**14)]
Rates = Annotated[
    tuple[Annotated[int, Strict(), Ge(2), Le(64)], ...],
    MinLen(1),
    MaxLen(8),
    Takes("a list of 1 to 8 whole numbers from 2 to 64"),
]
Strides = Annotated[
    tuple[Annotated[int, Strict(), Ge(1), Le(64)], ...],
    MinLen(1),
    MaxLen(8),
    Takes("a list of 1 to 8 whole numbers from 1 to 64"),
]
SIGNATURE = {"vq_strides", "encoder_rates", "decoder_rates", "sampling_rate"}  # keys by which config.json is known
LICENCE = "MIT"


class SnacConfig(Config):
    """config.json as published. What is left out has the value that the published code gives it."""

    sampling_rate: Annotated[int, Strict(), Ge(1), Le(10**6)] = Field(default=44100, description="samples per second")
    encoder_dim: Width = Field(default=64, description="channels of the encoder's first layer")
    encoder_rates: Rates = Field(default=(3, 3, 7, 7), description="strides of the encoder")
    latent_dim: Width | None = Field(default=None, description="width of the latents; null: as the encoder gives them")
    decoder_dim: Width = Field(default=1536, description="channels of the decoder's first layer")
    decoder_rates: Rates = Field(default=(7, 7, 3, 3), description="strides of the decoder")
    attn_window_size: Width | None = Field(default=32, description="latents that attention looks at; null: none")
    codebook_size: Annotated[int, Strict(), Ge(2), Le(2**16)] = Field(default=4096, description="entries of a codebook")
    codebook_dim: Width = Field(default=8, description="width of an entry")
    vq_strides: Strides = Field(default=(8, 4, 2, 1), description="latents per code of each level")
    noise: Flag = Field(default=True, description="whether the decoder adds noise")
    depthwise: Flag = Field(default=True, description="whether convolutions have a group per channel")

    @property
    def width(self) -> int:
        """Of the latents."""
        return self.encoder_dim * 2 ** len(self.encoder_rates)

    @property
    def hop_samples(self) -> int:
        """Of a frame: one code of the first level."""
        return math.prod(self.encoder_rates) * self.vq_strides[0]

    @property
    def block_frames(self) -> int:
        """Frames that attention looks at together."""
        return math.lcm(self.attn_window_size or 1, self.vq_strides[0]) // self.vq_strides[0]

    def num_streams(self, num_levels: int) -> int:
        """Streams of the first `num_levels` levels."""
        return sum(self.vq_strides[0] // stride for stride in self.vq_strides[:num_levels])

    @property
    def stream_numbers(self) -> list[int]:
        """Of 1 level, of 2, and so on."""
        return [self.num_streams(i + 1) for i in range(len(self.vq_strides))]

    def clashes(self) -> Iterable[tuple[bool, str]]:
        down, up = math.prod(self.encoder_rates), math.prod(self.decoder_rates)
        yield down != up, f"encoder_rates, decoder_rates: their products are {down} and {up}, expected equal ones"
        uneven = any(self.vq_strides[0] % stride for stride in self.vq_strides)
        yield uneven, "vq_strides: the first is no multiple of each of the others"
        is_other = self.latent_dim not in (None, self.width)
        yield is_other, f"latent_dim: got {self.latent_dim}, expected the {self.width} that the encoder gives"
        parts = 2 ** len(self.decoder_rates)
        yield self.decoder_dim % parts > 0, f"decoder_dim: got {self.decoder_dim}, expected a multiple of {parts}"
        heads = self.attn_window_size and (self.width % HEAD_WIDTH or self.decoder_dim % HEAD_WIDTH)
        yield bool(heads), f"attn_window_size: attention needs widths that are multiples of {HEAD_WIDTH}"

    def network(self, num_levels: int) -> Network:
        """Without weights."""
        with torch.device("meta"):
            window, depthwise = self.attn_window_size, self.depthwise
            encoder = Encoder(self.encoder_dim, self.encoder_rates, window, depthwise=depthwise)
            quantizer = Quantizer(self.width, self.codebook_size, self.codebook_dim, self.vq_strides, num_levels)
            decoder = Decoder(
                self.width,
                self.decoder_dim,
                self.decoder_rates,
                window,
                self.vq_strides[0],
                depthwise=depthwise,
                noise=self.noise,
            )
        return Network(encoder, quantizer, decoder)


class Snac(SingleCodec):
    """SNAC on one device."""

    def __init__(self, network: Network, config: SnacConfig, spec: CodecSpec, device: torch.device) -> None:
        super().__init__(spec, device)
        self.network = network.to(device).requires_grad_(False).eval()
        self._config = config

    def num_frames(self, num_samples: int) -> int:
        """Frames that `num_samples` samples give, padded to whole windows of attention."""
        block = self._config.block_frames
        return block * math.ceil(num_samples / (block * self.spec.hop_samples))

    def encoding_stages(self) -> Sequence[Stage]:
        """Up to the codes, which take several latents a frame."""
        hop, latents, block = self.spec.hop_samples, self._config.vq_strides[0], self._config.block_frames
        before, attention, after = _parts(self.network.encoder.block)
        quantize = self.network.quantizer.encode
        pad = Windowed(self._padded, Reach(0, 0), hop, hop, block)
        wide = _reach(before, hop, latents)
        if attention is None:
            return pad, Windowed(lambda wave: quantize(before(wave)), wide, inputs_per_frame=hop)
        near = _reach(after, latents, latents)
        return (
            pad,
            Windowed(before, wide, hop, latents),
            Windowed(attention, Reach(0, 0), latents, latents, block),
            Windowed(lambda x: quantize(after(x)), near, inputs_per_frame=latents),
        )

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """The last stage has done it."""
        return latents[0]

    def decoding_stages(self) -> Sequence[Stage]:
        hop, latents, block = self.spec.hop_samples, self._config.vq_strides[0], self._config.block_frames
        before, attention, after = _parts(self.network.decoder.model)
        latents_of = self.network.quantizer.decode
        if attention is None:

            def decode(codes: torch.Tensor, first_frame: int) -> torch.Tensor:
                return _run_placed(before, latents_of(codes), first_frame)

            return (Windowed(decode, _reach(before, latents, hop), outputs_per_frame=hop, placed=True),)
        near = _reach(before, latents, latents)
        wide = _reach(after, latents, hop)
        return (
            Windowed(lambda codes: before(latents_of(codes)), near, outputs_per_frame=latents),
            Windowed(attention, Reach(0, 0), latents, latents, block),
            Windowed(functools.partial(_run_placed, after), wide, latents, hop, placed=True),
        )

    def _padded(self, wave: torch.Tensor) -> torch.Tensor:
        """Zeros up to whole blocks of frames."""
        return F.pad(wave, (0, -wave.shape[2] % (self._config.block_frames * self.spec.hop_samples)))


def _parts(modules: nn.Sequential) -> tuple[nn.Sequential, WindowAttention | None, nn.Sequential]:
    """What comes before attention, attention, and what comes after it."""
    parts = list(modules)
    for i, module in enumerate(parts):
        if isinstance(module, WindowAttention):
            return nn.Sequential(*parts[:i]), module, nn.Sequential(*parts[i + 1 :])
    return modules, None, nn.Sequential()


def _reach(modules: nn.Sequential, inputs_per_frame: int, outputs_per_frame: int) -> Reach:
    return reach(list(layers_of(modules)), inputs_per_frame, outputs_per_frame)


def _run_placed(modules: nn.Sequential, x: torch.Tensor, first_frame: int) -> torch.Tensor:
    """The output of `modules` for x, which begins at `first_frame`."""
    for module in modules:
        x = module(x, first_frame) if isinstance(module, DecoderBlock) else module(x)
    return x


def read(source: Source) -> Added | None:
    """The published files of a SNAC model; None where they are another codec's.

    Raises UserError when they are damaged, or the streams that are wanted are not those of whole levels.
    """
    if not source.config.keys() >= SIGNATURE:
        return None
    config = from_dict(SnacConfig, source.config, f"config.json of {source.path}")
    numbers = config.stream_numbers
    usual = max((number for number in numbers if number <= MAX_LM_STREAMS), default=None)
    number = source.chosen_streams(numbers[-1], usual=usual)
    if number not in numbers:
        raise UserError(
            f"the streams of {source.path} come in levels",
            got=f"--streams {number}",
            expected=", ".join(str(n) for n in numbers),
        )
    num_levels = numbers.index(number) + 1
    left_out = {f"quantizer.quantizers.{i}" for i in range(num_levels, len(numbers))}
    found = {
        plain_name(name): tensor
        for name, tensor in ((str(name), tensor) for name, tensor in source.weights.items())
        if ".".join(name.split(".")[:3]) not in left_out and not name.endswith(".inv_freq")  # a formula
    }
    wrong = f"{source.weights_file} does not hold the SNAC model of its config.json"
    weights = fold(check_layout(found, _published_layout(config, num_levels), wrong))
    return Added(streams=number, config=to_dict(config), weights=weights, licence=LICENCE)


def _layout(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _published_layout(config: SnacConfig, num_levels: int) -> dict[str, tuple[int, ...]]:
    """With weight norm, which all convolutions have."""
    layout: dict[str, tuple[int, ...]] = {}
    for name, shape in _layout(config.network(num_levels)).items():
        if name.endswith(".weight") and len(shape) == 3:
            layout |= {f"{name}_g": (shape[0], 1, 1), f"{name}_v": shape}
        else:
            layout[name] = shape
    return layout


def build(added: Added, device: torch.device) -> Snac:
    """The codec of what `read` gave. Raises UserError where settings or weights do not fit."""
    config = from_dict(SnacConfig, added.config, "the settings of a SNAC codec")
    if added.streams not in config.stream_numbers:
        raise UserError("not a SNAC codec", got=f"{added.streams} streams", expected=f"{config.stream_numbers}")
    num_levels = config.stream_numbers.index(added.streams) + 1
    network = config.network(num_levels)
    wrong = "these are not the weights of the SNAC model that is described"
    network.load_state_dict(check_layout(added.weights, _layout(network), wrong), assign=True)
    places = stream_places(config.vq_strides, num_levels)
    spec = CodecSpec(
        name=f"snac_{round(config.sampling_rate / 1000)}khz",
        sample_rate=config.sampling_rate,
        hop_samples=config.hop_samples,
        streams=tuple(Stream(f"{level + 1}.{i + 1}", config.codebook_size, "coupled") for level, i in places),
        speaker_dim=0,
        weights_sha256=identity(added),
    )
    return Snac(network, config, spec, device)
