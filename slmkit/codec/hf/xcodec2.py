"""X-Codec 2 (Ye et al., arXiv 2502.04128): one codebook of 65 536, 50 frames per second.

W2V-BERT and a convolutional encoder give the latents; each of 8 numbers is rounded to one of 4 levels. The semantic
network looks at the whole utterance. One of up to 30 seconds is encoded whole, as published; a longer one in pieces of
30 seconds, each with `CONTEXT_SEC` of audio on both sides, and then its codes may be others than those of the whole.
The decoder looks at the whole utterance, too: it decodes no stream.

An utterance of n samples has n // hop + 1 frames: the published code adds a sample before it fills the last frame.

Example:
    slmkit codec add HKUSTAudio/xcodec2-hf codecs/xcodec2
"""

import functools
import math
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import Field
from pydantic.types import Strict
from torch import nn

from slmkit.codec.added import Added
from slmkit.codec.base import Reach
from slmkit.codec.hf.convolutions import to_whole_frames
from slmkit.codec.hf.pretrained import (
    Few,
    NetworkCodec,
    NetworkFile,
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
from slmkit.codec.hf.xcodec import CONTEXT_SEC, SemanticFile
from slmkit.codec.open import Preset, register_codec
from slmkit.codec.stages import Windowed
from slmkit.config.values import Takes
from slmkit.errors import UserError

NAME = "xcodec2"
CODEBOOK = r"quantizer\.project_in\.weight"  # levels, not entries
HOP = 320  # samples of a frame of W2V-BERT, which has two frames of mel bands
MEL_BANDS, MEL_STRIDE = 80, 2
PADDING = 1.0  # of bands beyond the end
Levels = Annotated[
    tuple[Annotated[int, Strict(), Ge(2), Le(256)], ...], MinLen(1), MaxLen(16), Takes("a list of 2 to 256 levels")
]


class _BertFile(SemanticFile):
    model_type: Literal["wav2vec2-bert"] = Field(default="wav2vec2-bert", description="kind of network")
    hidden_size: Size = Field(default=1024, description="width")
    num_hidden_layers: Few = Field(default=16, description="layers")
    num_attention_heads: Few = Field(default=16, description="heads")
    intermediate_size: Size = Field(default=4096, description="inner width")
    feature_projection_input_dim: Literal[160] = Field(default=160, description="numbers of a frame of mel bands")
    add_adapter: Literal[False] = Field(default=False, description="whether it halves its rate")


class _NetworkFile(NetworkFile):
    """X-Codec 2's config.json; defaults are those of transformers, which leaves them out."""

    sampling_rate: Literal[16000] = Field(default=16000, description="samples per second")
    downsampling_ratios: Ratios = Field(default=(2, 2, 4, 4, 5), description="strides of the encoder")
    encoder_hidden_size: Size = Field(default=48, description="channels of the first convolution")
    hidden_size: Size = Field(default=1024, description="width of the decoder")
    intermediate_size: Size = Field(default=4096, description="inner width")
    num_hidden_layers: Few = Field(default=12, description="layers of the decoder")
    num_attention_heads: Few = Field(default=16, description="heads")
    rope_parameters: RotaryFile | None = Field(default=None, description="rotary positions")
    quantization_dim: Size = Field(default=2048, description="width of the latents")
    quantization_levels: Levels = Field(default=(4,) * 8, description="levels of each rounded number")
    semantic_model_config: _BertFile = Field(default=_BertFile(), description="W2V-BERT")


class XCodec2(NetworkCodec):
    """See the module."""

    def __init__(self, added: Added, device: torch.device) -> None:
        file: _NetworkFile = checked(_NetworkFile, added)
        hop, size = checked_hop(file.downsampling_ratios), math.prod(file.quantization_levels)
        if size > 2**16:
            raise UserError("the codec has too many entries", got=size, expected=f"at most {2**16}")
        if hop != HOP:
            raise UserError("the codec's two encoders have frames of different lengths", got=hop, expected=HOP)
        check_streams(added, 1)
        self.network: Any = load_network("Xcodec2Model", "Xcodec2Config", added, device)
        spec = spec_of(NAME, added, sample_rate=file.sampling_rate, hop_samples=hop, size=size)
        super().__init__(spec, device)
        from transformers import SeamlessM4TFeatureExtractor

        self._mel = SeamlessM4TFeatureExtractor(
            feature_size=MEL_BANDS,
            num_mel_bins=MEL_BANDS,
            stride=MEL_STRIDE,
            sampling_rate=file.sampling_rate,
            padding_value=PADDING,
        )
        context = round(CONTEXT_SEC * spec.frame_rate)
        self._encoding = (Windowed(self._encode, Reach(context, context), inputs_per_frame=hop),)
        self._decoding = (Windowed(self._decode, None, outputs_per_frame=hop),)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.spec.hop_samples + 1 if num_samples > 0 else 0

    def _encode(self, wave: torch.Tensor) -> torch.Tensor:
        hop = self.spec.hop_samples
        wave = to_whole_frames(nn.functional.pad(wave, (0, 1)), hop)
        around = nn.functional.pad(wave[0, 0], (hop // 2, hop // 2)).cpu().numpy()
        mel = self._mel(around, sampling_rate=self.spec.sample_rate, return_tensors="pt").to(self.device)
        features, mask = mel["input_features"], mel["attention_mask"]
        return self.network.encode(wave, features, input_features_mask=mask).audio_codes

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.network.decode(codes).audio_values

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[0]  # the network has no method that ends before its quantizer


register_codec(
    NAME,
    read=functools.partial(read_pretrained, model_type=NAME, codebook=CODEBOOK),
    build=XCodec2,
    presets=[Preset("HKUSTAudio/xcodec2-hf", 16000, 320, "1 of 65536", False, "CC-BY-NC-4.0")],
)
