"""SNAC (arXiv 2410.14411): streams of different rates, flattened frame by frame."""

from slmkit.codec.open import Preset, register_codec
from slmkit.codec.snac.codec import build, read

PRESETS = (
    Preset("hubertsiuzdak/snac_24khz", 24000, 2048, "1 3 7 of 4096", True, "MIT"),
    Preset("hubertsiuzdak/snac_32khz", 32000, 3072, "1 3 7 15 of 4096", True, "MIT"),
    Preset("hubertsiuzdak/snac_44khz", 44100, 3072, "1 3 7 15 of 4096", True, "MIT"),
)
register_codec("snac", read=read, build=build, presets=PRESETS)
