"""Mimi (Défossez et al., arXiv 2410.00037): 12.5 frames per second, a semantic codebook and residual acoustic ones.

All networks look back only: convolutions, and transformers whose attention reaches some seconds back and is carried on
through a cache of keys and values.

Example:
    slmkit codec add kyutai/mimi codecs/mimi --streams 8
"""

import functools
from typing import Any, Literal

import torch
from pydantic import Field

from slmkit.codec.added import Added
from slmkit.codec.base import Role
from slmkit.codec.hf.convolutions import windowed
from slmkit.codec.hf.pretrained import (
    Few,
    NetworkCodec,
    NetworkFile,
    PadMode,
    Rate,
    Ratios,
    RotaryFile,
    Size,
    check_streams,
    checked,
    checked_hop,
    load_network,
    read_pretrained,
    spec_of,
)
from slmkit.codec.open import Preset, register_codec
from slmkit.codec.stages import Recurrent
from slmkit.errors import UserError

NAME = "mimi"
CODEBOOK = r"quantizer\.\w+\.layers\.\d+\.codebook\.embed_sum"


class _NetworkFile(NetworkFile):
    """Mimi's config.json; defaults are those of transformers, which leaves them out."""

    sampling_rate: Rate = Field(default=24000, description="samples per second")
    audio_channels: Literal[1] = Field(default=1, description="channels of the audio")
    use_causal_conv: Literal[True] = Field(default=True, description="whether convolutions look back only")
    hidden_size: Size = Field(default=512, description="width of the latents")
    num_filters: Size = Field(default=64, description="channels of the first convolution")
    pad_mode: PadMode = Field(default="constant", description="padding of convolutions")
    num_residual_layers: Few = Field(default=1, description="residual layers of a block")
    upsampling_ratios: Ratios | None = Field(default=None, description="strides of the decoder")
    kernel_size: Few = Field(default=7, description="first kernel")
    last_kernel_size: Few = Field(default=3, description="last kernel")
    residual_kernel_size: Few = Field(default=3, description="kernel of a residual layer")
    dilation_growth_rate: Few = Field(default=2, description="growth of the dilation")
    codebook_size: Size = Field(default=2048, description="entries of a codebook")
    codebook_dim: Size | None = Field(default=256, description="width of an entry")
    num_quantizers: Few = Field(default=32, description="codebooks")
    num_semantic_quantizers: Few = Field(default=1, description="semantic codebooks")
    num_hidden_layers: Few = Field(default=8, description="layers of a transformer")
    intermediate_size: Size = Field(default=2048, description="inner width of a transformer")
    num_attention_heads: Few = Field(default=8, description="heads")
    num_key_value_heads: Few = Field(default=8, description="heads of keys")
    rope_parameters: RotaryFile | None = Field(default=None, description="rotary positions")
    sliding_window: Size = Field(default=250, description="positions that attention reaches back")


class Mimi(NetworkCodec):
    """See the module. Convolutions and transformers work at twice the rate of the frames."""

    def __init__(self, added: Added, device: torch.device) -> None:
        file: _NetworkFile = checked(_NetworkFile, added)
        self.network = network = load_network("MimiModel", "MimiConfig", added, device)
        quantizer = network.quantizer
        check_streams(added, file.num_quantizers)
        if added.streams < file.num_semantic_quantizers:
            expected = f"at least {file.num_semantic_quantizers}, the semantic ones"
            raise UserError("too few streams of Mimi", got=added.streams, expected=expected)
        # Newer versions of transformers hold the networks in two halves.
        halves = hasattr(network.encoder, "encoder_seanet")
        coder, decoder = (network.encoder, network.decoder) if halves else (network, network)
        if coder.downsample is None or decoder.upsample is None:
            raise UserError("the codec's config is not that of Mimi", got="frames as many as vectors of convolutions")
        steps = coder.downsample.conv.stride[0]
        hop = checked_hop([*(file.upsampling_ratios or (8, 6, 5, 4)), steps])
        self._encoding = (
            windowed((network.encoder.encoder_seanet if halves else network.encoder).layers, steps=steps),
            self._attention(coder.encoder_transformer, steps),
            windowed([coder.downsample]),
        )
        self._decoding = (
            windowed([decoder.upsample], start=quantizer.decode),
            self._attention(decoder.decoder_transformer, steps),
            windowed((network.decoder.decoder_seanet if halves else network.decoder).layers, steps=steps),
        )
        semantic: list[Role] = ["semantic"] * file.num_semantic_quantizers
        spec = spec_of(
            NAME,
            added,
            sample_rate=file.sampling_rate,
            hop_samples=hop,
            size=file.codebook_size,
            roles=(*semantic, "coupled"),
        )
        super().__init__(spec, device)

    def _attention(self, transformer: Any, steps: int) -> Recurrent:
        from transformers import DynamicCache

        def run(values: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:  # [1, C, t]
            # Made for a sliding window, the cache holds no more than attention reaches back.
            cache = DynamicCache(config=self.network.config) if cache is None else cache
            # By place: the name of the cache differs between versions.
            found = transformer(values.transpose(1, 2), None, None, cache, True)
            return found.last_hidden_state.transpose(1, 2), cache

        return Recurrent(run, steps, steps)

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        return self.network.quantizer.encode(latents, len(self.spec.streams))[:, 0]


register_codec(
    NAME,
    read=functools.partial(read_pretrained, model_type=NAME, codebook=CODEBOOK),
    build=Mimi,
    presets=[Preset("kyutai/mimi", 24000, 1920, "1 to 32 of 2048", True, "CC-BY-4.0")],
)
