"""BigCodec (arXiv 2409.05377): 16 kHz, 80 frames per second, one stream of 8192 entries."""

from slmkit.codec.bigcodec.checkpoint import read
from slmkit.codec.bigcodec.codec import BigCodec
from slmkit.codec.open import Preset, register_codec

PRESETS = (Preset("Alethia/BigCodec", 16000, 200, "1 of 8192", True, "MIT"),)
register_codec("bigcodec", read=read, build=BigCodec, presets=PRESETS)
