"""SpeechTokenizer (arXiv 2308.16692): 16 kHz, 50 frames per second, 8 residual streams, the first of them semantic."""

from typing import TYPE_CHECKING

import torch

from slmkit.codec.base import Codec
from slmkit.codec.open import Preset, register_codec

if TYPE_CHECKING:
    from slmkit.codec.added import Added, Source


def _read(source: "Source") -> "Added | None":
    from slmkit.codec.speechtokenizer.checkpoint import read

    return read(source)


def _build(added: "Added", device: torch.device) -> Codec:
    from slmkit.codec.speechtokenizer.codec import SpeechTokenizer

    return SpeechTokenizer(added, device)


PRESETS = (Preset("fnlp/SpeechTokenizer", 16000, 320, "1 to 8 of 1024", True, "Apache 2.0"),)
register_codec("speechtokenizer", read=_read, build=_build, presets=PRESETS)
