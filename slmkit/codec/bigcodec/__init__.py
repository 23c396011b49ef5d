"""BigCodec (arXiv 2409.05377): 16 kHz, 80 frames per second, one stream of 8192 entries."""

from typing import TYPE_CHECKING

import torch

from slmkit.codec.base import Codec
from slmkit.codec.open import Preset, register_codec

if TYPE_CHECKING:
    from slmkit.codec.added import Added, Source


def _read(source: "Source") -> "Added | None":
    from slmkit.codec.bigcodec.checkpoint import read

    return read(source)


def _build(added: "Added", device: torch.device) -> Codec:
    from slmkit.codec.bigcodec.codec import BigCodec

    return BigCodec(added, device)


PRESETS = (Preset("Alethia/BigCodec", 16000, 200, "1 of 8192", True, "MIT"),)
register_codec("bigcodec", read=_read, build=_build, presets=PRESETS)
