"""EnCodec at 24 kHz (Défossez et al., arXiv 2210.13438): residual codebooks, each refining the ones before.

Convolutions look back only, but for the beginning, which is padded by reflection; an LSTM carries a state through the
whole utterance. So decoding depends on everything before, and on the first frames after.

Not done: the 48 kHz model, which is stereo and works on overlapping seconds, each scaled by itself.

Example:
    slmkit codec add facebook/encodec_24khz codecs/encodec-8 --streams 8
"""

import functools
from typing import Annotated, Literal

import torch
from annotated_types import MaxLen, MinLen
from pydantic import Field

from slmkit.codec.added import Added
from slmkit.codec.hf.pretrained import (
    NetworkCodec,
    Ratios,
    Size,
    check_streams,
    checked,
    checked_hop,
    load_network,
    read_pretrained,
    spec_of,
)
from slmkit.codec.hf.seanet import SeanetFile, seanet_stages
from slmkit.codec.open import Preset, register_codec
from slmkit.config.values import Positive, Takes

NAME = "encodec"
CODEBOOK = r"quantizer\.layers\.\d+\.codebook\.embed"


class _NetworkFile(SeanetFile):
    """EnCodec's config.json; defaults are those of transformers, which leaves them out."""

    normalize: Literal[False] = Field(default=False, description="whether loudness is a part of the codes")
    chunk_length_s: Annotated[None, Takes("null")] = Field(default=None, description="seconds coded by themselves")
    hidden_size: Size = Field(default=128, description="width of the latents")
    upsampling_ratios: Ratios = Field(default=(8, 5, 4, 2), description="strides of the decoder")
    codebook_size: Size = Field(default=1024, description="entries of a codebook")
    codebook_dim: Size | None = Field(default=None, description="width of an entry")
    target_bandwidths: Annotated[
        tuple[Positive, ...], MinLen(1), MaxLen(64), Takes("a list of 1 to 64 positive numbers")
    ] = Field(default=(24.0,), description="kilobits per second; the last says how many codebooks there are")


class Encodec(NetworkCodec):
    """See the module."""

    def __init__(self, added: Added, device: torch.device) -> None:
        file: _NetworkFile = checked(_NetworkFile, added)
        hop = checked_hop(file.upsampling_ratios)
        self.network = load_network("EncodecModel", "EncodecConfig", added, device)
        quantizer = self.network.quantizer
        check_streams(added, len(quantizer.layers))
        quantizer.layers, quantizer.num_quantizers = quantizer.layers[: added.streams], added.streams
        self._encoding = seanet_stages(self.network.encoder.layers)
        self._decoding = seanet_stages(
            self.network.decoder.layers, start=lambda codes: quantizer.decode(codes.transpose(0, 1))
        )
        spec = spec_of(
            NAME,
            added,
            sample_rate=file.sampling_rate,
            hop_samples=hop,
            size=file.codebook_size,
        )
        super().__init__(spec, device)

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        return self.network.quantizer.encode(latents)[:, 0]


register_codec(
    NAME,
    read=functools.partial(read_pretrained, model_type=NAME, codebook=CODEBOOK),
    build=Encodec,
    presets=[Preset("facebook/encodec_24khz", 24000, 320, "1 to 32 of 1024", True, "MIT")],
)
