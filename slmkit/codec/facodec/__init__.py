"""FACodec V2, the speech codec of NaturalSpeech 3 (arXiv 2403.03100)."""

from pathlib import Path

import torch

from slmkit.codec.base import Codec
from slmkit.codec.open import Preset, register_codec

FILES = {"encoder": "ns3_facodec_encoder_v2.bin", "decoder": "ns3_facodec_decoder_v2.bin"}


def _load(path: Path, device: torch.device) -> Codec:
    from slmkit.codec.facodec.codec import FACodec

    return FACodec.from_directory(path, device)


PRESETS = (Preset("facodec", 16000, 200, "3 of 1024", True, "Apache 2.0"),)
register_codec("facodec", tuple(FILES.values()), _load, presets=PRESETS)
