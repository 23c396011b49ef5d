"""DAC, the Descript Audio Codec at 16, 24 and 44.1 kHz (Kumar et al., arXiv 2306.06546): residual codebooks.

All convolutions: each frame depends on some frames before and after. Frames are those of the published code, which
pads an utterance with zeros to whole frames; transformers leaves what is no whole frame out. The published decoder
gives a few samples less than whole frames where a stride is odd; they are zeros here, at the end.

Example:
    slmkit codec add descript/dac_16khz codecs/dac --streams 4
"""

import functools

import torch
from pydantic import Field

from slmkit.codec.added import Added
from slmkit.codec.hf.convolutions import to_whole_frames, windowed
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

NAME = "dac"
CODEBOOK = r"quantizer\.quantizers\.\d+\.codebook\.weight"


class DacFile(NetworkFile):
    """DAC's config.json; defaults are those of transformers, which leaves them out."""

    sampling_rate: Rate = Field(default=16000, description="samples per second")
    encoder_hidden_size: Size = Field(default=64, description="channels of the first convolution")
    decoder_hidden_size: Size = Field(default=1536, description="channels of the decoder's first convolution")
    downsampling_ratios: Ratios = Field(default=(2, 4, 8, 8), description="strides of the encoder")
    upsampling_ratios: Ratios | None = Field(default=None, description="strides of the decoder")
    hidden_size: Size | None = Field(default=None, description="width of the latents")
    n_codebooks: Few = Field(default=9, description="codebooks")
    codebook_size: Size = Field(default=1024, description="entries of a codebook")
    codebook_dim: Size = Field(default=8, description="width of an entry")


class Dac(NetworkCodec):
    """See the module."""

    def __init__(self, added: Added, device: torch.device) -> None:
        file: DacFile = checked(DacFile, added)
        hop = checked_hop(file.downsampling_ratios)
        self.network = load_network("DacModel", "DacConfig", added, device)
        check_streams(added, len(self.network.quantizer.quantizers))
        self._encoding = (windowed([self.network.encoder], start=lambda wave: to_whole_frames(wave, hop)),)
        self._decoding = (
            windowed([self.network.decoder], start=lambda codes: self.network.quantizer.from_codes(codes)[0]),
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
        return self.network.quantizer(latents, len(self.spec.streams))[1][0]


register_codec(
    NAME,
    read=functools.partial(read_pretrained, model_type=NAME, codebook=CODEBOOK),
    build=Dac,
    presets=[
        Preset("descript/dac_16khz", 16000, 320, "1 to 12 of 1024", True, "MIT"),
        Preset("descript/dac_24khz", 24000, 320, "1 to 32 of 1024", True, "MIT"),
        Preset("descript/dac_44khz", 44100, 512, "1 to 9 of 1024", True, "MIT"),
    ],
)
