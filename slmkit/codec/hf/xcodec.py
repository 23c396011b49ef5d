"""X-Codec (Ye et al., arXiv 2408.17175): DAC's networks beside HuBERT or WavLM, residual codebooks over both.

The semantic network looks at the whole utterance. One of up to 30 seconds is encoded whole, as published. A longer one
is encoded in pieces of 30 seconds, each with `CONTEXT_SEC` of audio on both sides, so that time and memory stay
bounded; its codes may be others than those of the whole. Decoding is convolutions alone.

Example:
    slmkit codec add hf-audio/xcodec-hubert-librispeech codecs/xcodec
"""

import functools
from typing import Annotated, Any, Literal

import torch
from annotated_types import MaxLen, MinLen
from pydantic import Field

from slmkit.codec.added import Added
from slmkit.codec.base import Reach
from slmkit.codec.hf.convolutions import to_whole_frames, windowed
from slmkit.codec.hf.dac import DacFile
from slmkit.codec.hf.pretrained import (
    Few,
    NetworkCodec,
    NetworkFile,
    Rate,
    Ratios,
    Size,
    check_streams,
    checked,
    checked_hop,
    load_network,
    read_pretrained,
    spec_of,
)
from slmkit.codec.open import Preset, register_codec
from slmkit.codec.stages import Windowed
from slmkit.config.values import Positive, Takes
from slmkit.errors import UserError

NAME = "xcodec"
CODEBOOK = r"quantizer\.quantizers\.\d+\.codebook\.embed"
CONTEXT_SEC = 5.0


class SemanticFile(NetworkFile):
    """Sizes of a speech encoder."""

    hidden_size: Size = Field(default=768, description="width")
    num_hidden_layers: Few = Field(default=12, description="layers")
    num_attention_heads: Few = Field(default=12, description="heads")
    intermediate_size: Size = Field(default=3072, description="inner width")


class _WaveFile(SemanticFile):
    model_type: Literal["hubert", "wavlm"] = Field(default="hubert", description="kind of network")
    conv_dim: Annotated[tuple[Size, ...], MaxLen(16), Takes("a list of whole numbers")] = Field(
        default=(512,) * 7, description="channels of the convolutions"
    )
    conv_kernel: Annotated[tuple[Few, ...], MaxLen(16), Takes("a list of whole numbers")] = Field(
        default=(10, 3, 3, 3, 3, 2, 2), description="their kernels"
    )
    conv_stride: Annotated[tuple[Few, ...], MaxLen(16), Takes("a list of whole numbers")] = Field(
        default=(5, 2, 2, 2, 2, 2, 2), description="their strides"
    )
    num_conv_pos_embeddings: Size = Field(default=128, description="kernel of the position embedding")


class _AcousticFile(DacFile):
    model_type: Literal["dac"] = Field(default="dac", description="kind of network")
    decoder_hidden_size: Size = Field(default=1024, description="channels of the decoder's first convolution")
    downsampling_ratios: Ratios = Field(default=(8, 5, 4, 2), description="strides of the encoder")


class _NetworkFile(NetworkFile):
    """X-Codec's config.json; defaults are those of transformers, which leaves them out."""

    sample_rate: Rate = Field(default=16000, description="samples per second")
    target_bandwidths: Annotated[
        tuple[Positive, ...], MinLen(1), MaxLen(64), Takes("a list of 1 to 64 positive numbers")
    ] = Field(default=(4.0,), description="kilobits per second; the last says how many codebooks there are")
    kernel_size: Few = Field(default=3, description="of the semantic convolutions")
    strides: Ratios = Field(default=(1, 1), description="of the semantic convolutions")
    channel_ratios: Ratios = Field(default=(1, 1), description="growth of their width")
    block_dilations: Ratios = Field(default=(1, 1), description="their dilations")
    unit_kernel_size: Few = Field(default=3, description="of residual units")
    codebook_size: Size = Field(default=1024, description="entries of a codebook")
    codebook_dim: Size | None = Field(default=None, description="width of an entry")
    acoustic_model_config: _AcousticFile = Field(default=_AcousticFile(), description="DAC")
    semantic_model_config: _WaveFile = Field(default=_WaveFile(), description="HuBERT or WavLM")


class XCodec(NetworkCodec):
    """See the module."""

    def __init__(self, added: Added, device: torch.device) -> None:
        file: _NetworkFile = checked(_NetworkFile, added)
        hop = checked_hop(file.acoustic_model_config.downsampling_ratios)
        self.network: Any = load_network("XcodecModel", "XcodecConfig", added, device)
        quantizer = self.network.quantizer
        check_streams(added, len(quantizer.quantizers))
        semantic = self.network.semantic_model
        found = [int(semantic._get_feat_extract_output_lengths(torch.tensor((t + 1) * hop))) for t in (1, 2, 100)]
        if found != [1, 2, 100] or any(stride != 1 for stride in file.strides):
            raise UserError("the codec's config gives its two encoders frames of different lengths", got=found)
        quantizer.quantizers, quantizer.num_quantizers = quantizer.quantizers[: added.streams], added.streams
        spec = spec_of(
            NAME,
            added,
            sample_rate=file.sample_rate,
            hop_samples=hop,
            size=file.codebook_size,
        )
        super().__init__(spec, device)
        context = round(CONTEXT_SEC * spec.frame_rate)
        self._encoding = (
            Windowed(
                lambda wave: self.network.encode(to_whole_frames(wave, hop)).audio_codes,
                Reach(context, context),
                inputs_per_frame=hop,
            ),
        )
        self._decoding = (windowed([self.network.acoustic_decoder], start=self._latents),)

    def _latents(self, codes: torch.Tensor) -> torch.Tensor:
        quantized = self.network.quantizer.decode(codes.transpose(0, 1))
        return self.network.fc2(quantized.transpose(1, 2)).transpose(1, 2)

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[0]  # the network has no method that ends before its quantizer


register_codec(
    NAME,
    read=functools.partial(read_pretrained, model_type=NAME, codebook=CODEBOOK),
    build=XCodec,
    presets=[
        Preset("hf-audio/xcodec-hubert-librispeech", 16000, 320, "1 to 8 of 1024", True, "MIT"),
        Preset("hf-audio/xcodec-hubert-general", 16000, 320, "1 to 8 of 1024", True, "MIT"),
        Preset("hf-audio/xcodec-wavlm-mls", 16000, 320, "1 to 8 of 1024", True, "MIT"),
    ],
)
